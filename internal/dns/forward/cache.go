package forward

import (
	"container/list"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// key is a question of class IN, the parts of it that change its answer.
type key struct {
	name string // wire form, small letters
	typ  uint16
	// dnssec: the asker wants signatures (DO); checked: it checks them itself (CD).
	dnssec, unchecked bool
}

// entry is a cache entry. Its answer may be past its time.
type entry struct {
	key    key
	answer *Answer
	hits   atomic.Uint32
	// fetching is set while the entry is being fetched anew before its end.
	fetching atomic.Bool
	// retry is when, in Unix nanoseconds, a stale answer may be tried to be
	// renewed again after that failed.
	retry atomic.Int64
}

const cacheShards = 16

// cache holds the answers used last, up to a number of them. No more than half
// of it, once it is full, is denials and failures: whoever asks for one name
// after the other that does not exist pushes out nobody's addresses.
type cache struct {
	seed     maphash.Seed
	shards   [cacheShards]cacheShard
	perShard int
	staleFor time.Duration
	evicted  func(denial bool)
}

type cacheShard struct {
	mu sync.Mutex
	m  map[key]*list.Element
	// lru are lists of *entry, the one used last first: answers, and what denies.
	lru [2]list.List
}

// list is which of a shard's lists an answer is in.
func (s *cacheShard) list(a *Answer) *list.List {
	if a.denies {
		return &s.lru[1]
	}
	return &s.lru[0]
}

func newCache(size int, staleFor time.Duration, evicted func(denial bool)) *cache {
	c := &cache{evicted: evicted, seed: maphash.MakeSeed(), perShard: max(1, size/cacheShards), staleFor: staleFor}
	for i := range c.shards {
		c.shards[i].m = map[key]*list.Element{}
	}
	return c
}

func (c *cache) shard(name []byte) *cacheShard {
	return &c.shards[maphash.Bytes(c.seed, name)%cacheShards]
}

// get finds an entry, fresh or stale; nil if there is none of any use.
func (c *cache) get(name []byte, typ uint16, dnssec, unchecked bool, now time.Time) *entry {
	s := c.shard(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	el := s.m[key{string(name), typ, dnssec, unchecked}]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	if now.Sub(e.answer.stored) > e.answer.ttl+c.staleFor {
		s.drop(el)
		return nil
	}
	s.list(e.answer).MoveToFront(el)
	return e
}

// put stores an answer, in the place of an older one to the same question.
func (c *cache) put(k key, a *Answer, now time.Time) {
	if a.ttl <= 0 {
		return
	}
	s := c.shard([]byte(k.name))
	s.mu.Lock()
	defer s.mu.Unlock()
	if el := s.m[k]; el != nil {
		s.drop(el)
	}
	s.m[k] = s.list(a).PushFront(&entry{key: k, answer: a})
	for len(s.m) > c.perShard {
		denial := s.lru[1].Len() > max(1, c.perShard/2) || s.lru[0].Len() == 0
		from := &s.lru[0]
		if denial {
			from = &s.lru[1]
		}
		s.drop(from.Back())
		c.evicted(denial)
	}
}

func (s *cacheShard) drop(el *list.Element) {
	e := el.Value.(*entry)
	s.list(e.answer).Remove(el)
	delete(s.m, e.key)
}

// count is how many answers are held: those that say something, and those that deny or failed.
func (c *cache) count() (success, denial int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		success += s.lru[0].Len()
		denial += s.lru[1].Len()
		s.mu.Unlock()
	}
	return success, denial
}
