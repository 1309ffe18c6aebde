package announce

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/announce/arp"
	"fairway.dev/fairway/internal/announce/ndp"
	"fairway.dev/fairway/internal/announce/raw"
)

// Responder answers for addresses of one family on one link. Packages arp and
// ndp have one each.
type Responder interface {
	// Claim has the link's hosts find the address here from now on.
	Claim(netip.Addr) error
	// Release ends that.
	Release(netip.Addr)
	// Announce tells hosts that knew the address elsewhere.
	Announce(netip.Addr) error
	// Counts calls a function for each address that is answered for.
	Counts(func(netip.Addr, raw.Counts))
	Close() error
}

type responderKey struct {
	link int // index
	v4   bool
}

func keyFor(link int, a netip.Addr) responderKey { return responderKey{link, a.Is4()} }

// failure is a responder that could not be opened, or not used.
type failure struct {
	text  string
	pause time.Duration // until the next try
}

// maxPause bounds the time until a failed responder is tried again.
const maxPause = 30 * time.Second

// errPaused is that a responder failed just before; it has been reported.
var errPaused = errors.New("failed just before")

// responder returns the one for an address on a link, opened when first needed.
func (s *speaker) responder(l link, a netip.Addr) (Responder, error) {
	k := keyFor(l.iface.Index, a)
	if r := s.responders[k]; r != nil {
		return r, nil
	}
	if s.failures[k] != nil && time.Now().Before(s.retry) {
		return nil, errPaused
	}
	c := raw.Config{
		NetNS: s.NetNS, Link: &l.iface, Port: l.enslaved, Logger: s.logger,
		Conflict: func(a netip.Addr, mac net.HardwareAddr) {
			select {
			case s.conflicts <- conflict{a, mac.String(), l.iface.Name}:
			default: // there are more than enough of them
			}
		},
		Broken: func(error) {
			select {
			case s.broken <- k:
			case <-s.done:
			}
		},
	}
	r, err := s.open(l, k.v4, c)
	if err != nil {
		return nil, err
	}
	delete(s.failures, k)
	s.responders[k] = r
	return r, nil
}

// failed notes that an address cannot be announced on a link. It is tried
// again, after a pause that grows.
func (s *speaker) failed(l link, a netip.Addr, err error) {
	if errors.Is(err, errPaused) {
		return
	}
	k := keyFor(l.iface.Index, a)
	f := s.failures[k]
	if f == nil {
		f = &failure{pause: time.Second / 2}
		s.failures[k] = f
		s.recheck = true
	}
	if f.text != err.Error() {
		s.logger.Warn("cannot announce, will try again", "address", a, "link", l.iface.Name, "err", err)
	}
	f.text, f.pause = err.Error(), min(2*f.pause, maxPause)
	if at := time.Now().Add(f.pause); s.retry.Before(time.Now()) || at.Before(s.retry) {
		s.retry = at
	}
}

func openResponder(_ link, v4 bool, c raw.Config) (Responder, error) {
	if v4 {
		return arp.Open(c)
	}
	return ndp.Open(c)
}

// tryAgain tries what failed, and forgets what nobody needs any more.
func (s *speaker) tryAgain() {
	s.retry = time.Time{}
	if s.members.phase == idle {
		// Nothing is claimed before it is known to work.
		for _, l := range s.links {
			for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
				if s.failures[keyFor(l.iface.Index, a)] == nil {
					continue
				}
				if _, err := s.responder(l, a); err != nil {
					s.failed(l, a, err)
				}
			}
		}
	}
	s.claimAll()
	if s.retry.IsZero() {
		clear(s.failures)
	}
	s.checkUsable()
}

// reopen replaces a responder that has broken down.
func (s *speaker) reopen(k responderKey) {
	r := s.responders[k]
	if r == nil {
		return
	}
	r.Close()
	delete(s.responders, k)
	for a, c := range s.claims {
		if a.Is4() == k.v4 {
			c.links = slices.DeleteFunc(c.links, func(i int) bool { return i == k.link })
		}
	}
	s.Monitor.reopened.Inc()
	s.claimAll()
}

// readLinks learns which links there are, and closes the responders of those
// that have gone or have another Ethernet address now.
func (s *speaker) readLinks() error {
	links, err := linksOf(s.NetNS)
	if err != nil {
		return err
	}
	same := func(l link) bool {
		return slices.ContainsFunc(links, func(n link) bool {
			return n.iface.Index == l.iface.Index && slices.Equal(n.iface.HardwareAddr, l.iface.HardwareAddr)
		})
	}
	for _, l := range s.links {
		if same(l) {
			continue
		}
		for _, v4 := range []bool{true, false} {
			k := responderKey{l.iface.Index, v4}
			delete(s.failures, k)
			if r := s.responders[k]; r != nil {
				r.Close()
				delete(s.responders, k)
			}
		}
		for _, c := range s.claims {
			c.links = slices.DeleteFunc(c.links, func(i int) bool { return i == l.iface.Index })
		}
	}
	s.links = links
	return nil
}
