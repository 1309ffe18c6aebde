package endpoints

import (
	"sync"
	"time"
)

// pace keeps a Service with very many Pods, each sync of which is dear, from
// taking a core of its own while they start one after the other: a Service of
// more than a few Pods rests between two syncs, for a time in proportion to
// their number. What happens meanwhile goes into the next one. Safe for
// concurrent use.
type pace struct {
	perPod time.Duration

	mu   sync.Mutex
	next map[name]time.Time // when the next sync may begin, if not at once
}

// fewPods need no rest.
const fewPods = 100

func newPace(perPod time.Duration) *pace {
	return &pace{perPod: perPod, next: map[name]time.Time{}}
}

// synced notes that a Service with that many Pods is being synced.
func (p *pace) synced(service name, pods int, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pods <= fewPods {
		delete(p.next, service)
		return
	}
	p.next[service] = now.Add(time.Duration(pods) * p.perPod)
}

// wait is how long the next sync has to wait; 0 or less if it may begin.
func (p *pace) wait(service name, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, ok := p.next[service]
	if !ok {
		return 0
	}
	return next.Sub(now)
}
