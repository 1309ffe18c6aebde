package announce

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// conflictAfter is how long this node must go on announcing an address after
	// another host has claimed it until that is a conflict: while an address
	// moves from node to node, two may claim it for a moment.
	conflictAfter = 3 * time.Second
	// conflictQuiet is how long nothing more is said about an address then.
	conflictQuiet = 10 * time.Minute
	// defendInterval is how often an address is announced against another
	// host's word, at most (DEFEND_INTERVAL of RFC 5227).
	defendInterval = 10 * time.Second
)

// conflict is another host's word that an address is its own.
type conflict struct {
	addr netip.Addr
	mac  string
	link string
}

// dispute is what is known about an address that somebody else claims.
type dispute struct {
	conflict
	since    time.Time // of our claim
	told     time.Time
	defended time.Time
}

// conflicting takes in that another host claims an address.
func (s *speaker) conflicting(x conflict) {
	c := s.claims[x.addr]
	if c == nil {
		delete(s.disputes, x.addr)
		return
	}
	s.Monitor.conflicts.Inc()
	d := s.disputes[x.addr]
	switch now := time.Now(); {
	case d == nil || !d.since.Equal(c.since) || !d.told.IsZero() && now.Sub(d.told) > conflictQuiet:
		d = &dispute{conflict: x, since: c.since}
		s.disputes[x.addr] = d
		time.AfterFunc(conflictAfter, func() {
			select {
			case s.disputed <- x.addr:
			case <-s.done:
			}
		})
	case !d.told.IsZero() && now.Sub(d.defended) > defendInterval:
		d.defended = now
		s.announce(x.addr, c)
	}
}

// judge says so if the claim that another host disputes still stands.
func (s *speaker) judge(a netip.Addr) {
	d, c := s.disputes[a], s.claims[a]
	if d == nil || !d.told.IsZero() {
		return
	}
	if c == nil || !c.since.Equal(d.since) {
		delete(s.disputes, a)
		return
	}
	d.told = time.Now()
	d.defended = d.told
	s.announce(a, c)
	s.logger.Warn("another host on the link uses an address that this node announces: look for the machine, or take the address out of its pool",
		"address", a, "mac", d.mac, "link", d.link)
	s.Shared.tell(a, corev1.EventTypeWarning, "AddressConflict",
		fmt.Sprintf("The host with Ethernet address %s uses address %s too, as node %s sees on %s. Find it, or take the address out of its pool.", d.mac, a, s.NodeName, d.link))
}
