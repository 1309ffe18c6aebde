package source

import (
	"net/netip"

	"fairway.dev/fairway/internal/proxy/state"
)

// ListsReady tells whether any EndpointSlice of a namespace lists an address
// as ready, as far as the Source has read. It looks through all slices of the
// namespace: it is for rare questions, not for the way of a packet.
func (s *Source) ListsReady(namespace string, addrs ...netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, slice := range s.slices {
		if key.namespace != namespace {
			continue
		}
		for i := range slice.Endpoints {
			if slice.Endpoints[i].Conditions&state.Ready == 0 {
				continue
			}
			for _, a := range addrs {
				if slice.Endpoints[i].Addr == a {
					return true
				}
			}
		}
	}
	return false
}
