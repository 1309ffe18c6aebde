package announce

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/api/v1alpha1"
)

// claim is an address that this node announces.
type claim struct {
	links []int // indices
	names []string
	since time.Time
	round int // of announcements: those of earlier ones are not repeated any more
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
// address, or may not use those it has.
func (s *speaker) checkUsable() {
	eligible, fits := false, false // not being eligible for anything is no reason
	for a, e := range s.entries {
		if _, ok := e.Nodes[s.NodeName]; !ok {
			continue
		}
		eligible = true
		fits = slices.ContainsFunc(choose(s.links, e.patterns(s.NodeName), a, s.nodes[s.NodeName].addrs), func(l link) bool {
			return s.failures[keyFor(l.iface.Index, a)] == nil
		})
		if fits {
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
	if p := s.members.peers[node]; p == nil || !p.clean {
		// It may have answered for ours while it did not hear us.
		s.announceAgain()
	}
	s.dirty = true
}

// elect notes who announces an address, and does so if it is this node.
func (s *speaker) elect(a netip.Addr, winner string) {
	s.winners[a] = winner
	s.Monitor.elections.Inc()
	if winner != s.NodeName {
		s.withdraw(a)
		return
	}
	s.claim(a)
}

// claim has this node announce an address on the links that are right now.
func (s *speaker) claim(a netip.Addr) {
	links := choose(s.links, s.entries[a].patterns(s.NodeName), a, s.nodes[s.NodeName].addrs)
	c := s.claims[a]
	taken := c == nil
	if taken {
		c = &claim{since: time.Now()}
		s.claims[a] = c
		s.dirty = true
		s.Monitor.takeovers.Inc()
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
			s.failed(l, a, err)
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
		s.announceSoon(a, c)
	}
	if taken && len(names) > 0 {
		s.Shared.tell(a, corev1.EventTypeNormal, "AddressAnnounced",
			fmt.Sprintf("Node %s announces address %s on %s", s.NodeName, a, strings.Join(names, ", ")))
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
	s.Monitor.handovers.Inc()
	for _, i := range c.links {
		if r := s.responders[keyFor(i, a)]; r != nil {
			r.Release(a)
		}
	}
	s.dirty = true
	s.logger.Debug("address given up", "address", a)
}
