package announce

import (
	"net/netip"
	"time"
)

// repeats is when an address taken over is announced again, after the first
// time: one announcement may get lost.
var repeats = [...]time.Duration{100 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}

// Switches and routers look at announcements with slow processors: a node that
// takes thousands of addresses over sends burst announcements at once at most, and
// then none for pause: 4,000 a second.
const (
	burst = 40
	pause = 10 * time.Millisecond
)

// pacer says when which address is to be announced. Stage 0 is the first
// announcement, stage n the repeat number n; whoever is in a stage waits
// equally long, so that each is a queue by time. Its zero value is empty.
type pacer struct {
	stages [len(repeats) + 1][]due
	free   time.Time // nothing is sent before
}

type due struct {
	at    time.Time
	addr  netip.Addr
	round int
}

// add puts an announcement into a stage; beyond the last one it does nothing.
func (p *pacer) add(stage int, addr netip.Addr, round int, now time.Time) {
	if stage > len(repeats) {
		return
	}
	at := now
	if stage > 0 {
		at = at.Add(repeats[stage-1])
	}
	if stage > 1 {
		at = at.Add(-repeats[stage-2])
	}
	p.stages[stage] = append(p.stages[stage], due{at, addr, round})
}

// next is when take returns something; false if there is nothing to wait for.
func (p *pacer) next() (at time.Time, ok bool) {
	for _, q := range p.stages {
		if len(q) > 0 && (!ok || q[0].at.Before(at)) {
			at, ok = q[0].at, true
		}
	}
	if ok && at.Before(p.free) {
		at = p.free
	}
	return at, ok
}

// take returns what is due, first announcements first, a burst at most. Those
// that send says no to do not count.
func (p *pacer) take(now time.Time, send func(stage int, d due) bool) {
	if now.Before(p.free) {
		return
	}
	sent := 0
	for stage := range p.stages {
		for len(p.stages[stage]) > 0 && !p.stages[stage][0].at.After(now) {
			if sent == burst {
				p.free = now.Add(pause)
				return
			}
			d := p.stages[stage][0]
			p.stages[stage] = p.stages[stage][1:]
			if send(stage, d) {
				sent++
				p.add(stage+1, d.addr, d.round, now)
			}
		}
		if len(p.stages[stage]) == 0 {
			p.stages[stage] = nil
		}
	}
}

// announceSoon announces an address as soon as may be, and then repeatedly.
func (s *speaker) announceSoon(a netip.Addr, c *claim) {
	c.round++
	s.pacer.add(0, a, c.round, time.Now())
}

// announceAgain announces everything once more, and later again.
func (s *speaker) announceAgain() {
	for a, c := range s.claims {
		s.announceSoon(a, c)
	}
}

// announceDue announces what is due.
func (s *speaker) announceDue() {
	s.pacer.take(time.Now(), func(_ int, d due) bool {
		c := s.claims[d.addr]
		if c == nil || c.round != d.round {
			return false
		}
		s.announce(d.addr, c)
		return true
	})
}

func (s *speaker) announce(a netip.Addr, c *claim) {
	for _, i := range c.links {
		if r := s.responders[keyFor(i, a)]; r != nil {
			if err := r.Announce(a); err != nil {
				s.logger.Debug("announce", "address", a, "err", err)
			}
		}
	}
}
