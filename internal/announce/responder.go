package announce

import (
	"net/netip"
	"slices"

	"fairway.dev/fairway/internal/announce/arp"
	"fairway.dev/fairway/internal/announce/ndp"
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
	Close() error
}

type responderKey struct {
	link int // index
	v4   bool
}

func keyFor(link int, a netip.Addr) responderKey { return responderKey{link, a.Is4()} }

// responder returns the one for an address on a link, opened when first needed.
func (s *speaker) responder(l link, a netip.Addr) (Responder, error) {
	k := keyFor(l.iface.Index, a)
	if r := s.responders[k]; r != nil {
		return r, nil
	}
	var r Responder
	var err error
	if k.v4 {
		r, err = arp.Open(s.NetNS, &l.iface, s.logger)
	} else {
		r, err = ndp.Open(s.NetNS, &l.iface, s.logger)
	}
	if err != nil {
		return nil, err
	}
	s.responders[k] = r
	return r, nil
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
