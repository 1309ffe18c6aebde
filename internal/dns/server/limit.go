package server

import (
	"net/netip"
	"sync"
)

// limiter counts what each asker has under way.
type limiter struct {
	most int
	mu   sync.Mutex
	m    map[netip.Addr]int
}

func newLimiter(most int) *limiter { return &limiter{most: most, m: map[netip.Addr]int{}} }

// acquire takes one of the asker's places, or reports that all are taken.
func (l *limiter) acquire(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m[a] >= l.most {
		return false
	}
	l.m[a]++
	return true
}

// release gives a place back.
func (l *limiter) release(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m[a]--; l.m[a] <= 0 {
		delete(l.m, a)
	}
}
