package announce

import (
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/api/v1alpha1"
)

// repeats is when an address taken over is announced again, after the first
// time: one announcement may get lost.
var repeats = []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}

// claim is an address that this node announces.
type claim struct {
	links []int // indices
	names []string
	since time.Time
}

type repeat struct {
	at   time.Time
	addr netip.Addr
	n    int // index in repeats
}

// setEntries takes in what is to be announced, by whom.
func (s *speaker) setEntries(entries map[netip.Addr]*Entry) {
	for a, e := range entries {
		if e == nil || e.Mode != v1alpha1.AnnounceL2 {
			delete(s.entries, a)
			delete(s.winners, a)
			s.withdraw(a)
			continue
		}
		s.entries[a] = e
		s.elect(a, elect(a, e.Nodes, s.members.alive))
	}
	if s.members.phase != leaving {
		s.checkUsable()
	}
}

// checkUsable leaves announcing to others while this node has no link for any
// address.
func (s *speaker) checkUsable() {
	eligible, fits := false, false // not being eligible for anything is no reason
	for a, e := range s.entries {
		if _, ok := e.Nodes[s.NodeName]; !ok {
			continue
		}
		eligible = true
		if fits = len(choose(s.links, e.Interfaces, a, s.nodes[s.NodeName].addrs)) > 0; fits {
			break
		}
	}
	if !s.members.setUsable(fits || !eligible, time.Now()) {
		return
	}
	s.repace = true
	s.logger.Info("links to announce on have changed", "phase", s.members.phase)
	s.beat()
	s.electAll()
}

// electAll elects for every address.
func (s *speaker) electAll() {
	for a, e := range s.entries {
		s.elect(a, elect(a, e.Nodes, s.members.alive))
	}
	s.dirty = true
}

// lost elects anew for the addresses of nodes that are no longer alive.
func (s *speaker) lost(nodes []string) {
	for a, e := range s.entries {
		if slices.Contains(nodes, s.winners[a]) {
			s.elect(a, elect(a, e.Nodes, s.members.alive))
		}
	}
	s.dirty = true
}

// joined hands over to a node that has come alive what it is better ranked for.
func (s *speaker) joined(node string) {
	for a, e := range s.entries {
		if _, ok := e.Nodes[node]; ok && beats(node, s.winners[a], a) {
			s.elect(a, node)
		}
	}
	// It may have answered for ours while it did not hear us.
	s.announceAgain()
	s.dirty = true
}

// elect notes who announces an address, and does so if it is this node.
func (s *speaker) elect(a netip.Addr, winner string) {
	s.winners[a] = winner
	if winner != s.NodeName {
		s.withdraw(a)
		return
	}
	s.claim(a)
}

// claim has this node announce an address on the links that are right now.
func (s *speaker) claim(a netip.Addr) {
	links := choose(s.links, s.entries[a].Interfaces, a, s.nodes[s.NodeName].addrs)
	c := s.claims[a]
	if c == nil {
		c = &claim{since: time.Now()}
		s.claims[a] = c
		s.dirty = true
		s.logger.Debug("address taken over", "address", a)
	}
	var indices []int
	var names []string
	fresh := false
	for _, l := range links {
		r, err := s.responder(l, a)
		if err == nil && !slices.Contains(c.links, l.iface.Index) {
			err = r.Claim(a)
			fresh = true
		}
		if err != nil {
			s.logger.Warn("cannot announce", "address", a, "link", l.iface.Name, "err", err)
			continue
		}
		indices, names = append(indices, l.iface.Index), append(names, l.iface.Name)
	}
	for _, i := range c.links {
		if !slices.Contains(indices, i) {
			if r := s.responders[keyFor(i, a)]; r != nil {
				r.Release(a)
			}
		}
	}
	if !slices.Equal(c.names, names) {
		s.dirty = true
	}
	c.links, c.names = indices, names
	if fresh {
		s.announce(a, c)
		s.later(a, 0)
	}
}

// claimAll puts every claim onto the links that are right now.
func (s *speaker) claimAll() {
	for a := range s.claims {
		s.claim(a)
	}
}

// withdraw stops announcing an address.
func (s *speaker) withdraw(a netip.Addr) {
	c := s.claims[a]
	if c == nil {
		return
	}
	delete(s.claims, a)
	for _, i := range c.links {
		if r := s.responders[keyFor(i, a)]; r != nil {
			r.Release(a)
		}
	}
	s.dirty = true
	s.logger.Debug("address given up", "address", a)
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

// announceAgain announces everything once more, and later again.
func (s *speaker) announceAgain() {
	s.repeating = nil
	for a, c := range s.claims {
		s.announce(a, c)
		s.later(a, 0)
	}
}

func (s *speaker) later(a netip.Addr, n int) {
	if n >= len(repeats) {
		return
	}
	wait := repeats[n]
	if n > 0 {
		wait -= repeats[n-1]
	}
	r := repeat{at: time.Now().Add(wait), addr: a, n: n}
	i, _ := slices.BinarySearchFunc(s.repeating, r, func(x, y repeat) int { return x.at.Compare(y.at) })
	s.repeating = slices.Insert(s.repeating, i, r)
}

// repeat announces again what is due.
func (s *speaker) repeat() {
	now := time.Now()
	due := 0
	for due < len(s.repeating) && !s.repeating[due].at.After(now) {
		due++
	}
	list := slices.Clone(s.repeating[:due])
	s.repeating = slices.Delete(s.repeating, 0, due)
	for _, r := range list {
		if c := s.claims[r.addr]; c != nil {
			s.announce(r.addr, c)
			s.later(r.addr, r.n+1)
		}
	}
}
