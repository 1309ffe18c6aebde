// Package conntrack makes the kernel forget connections of UDP and SCTP that
// would go on towards an endpoint which no longer serves.
//
// In goes which frontend and which backend, out goes that those entries of the
// node's connection tracking table are deleted, and no others. It speaks
// ctnetlink and touches nothing else.
//
// The kernel has no index from a destination to its connections, so somebody
// has to walk the table. Here the kernel does, once per batch, with a filter
// that leaves all but the affected entries where they are (CTA_FILTER, Linux
// 5.8; an older kernel sends every entry of the family, and the choice is made
// here). Such a walk takes tens of milliseconds with 50,000 entries, most of it
// in the kernel, and none at all while nothing of UDP or SCTP changes.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/proxy/state"
)

// Cleaner deletes entries in one network namespace. It is not safe for
// concurrent use.
type Cleaner struct {
	ns *netns.NS // nil: the caller's own
}

// New returns a Cleaner for a namespace; nil is the process's own.
func New(ns *netns.NS) *Cleaner { return &Cleaner{ns: ns} }

// Delete deletes the entries that stale names and returns how many there were.
// The context is looked at between steps.
func (c *Cleaner) Delete(ctx context.Context, stale []state.Stale) (deleted int, err error) {
	conn, err := c.dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	for _, proto := range []state.Protocol{state.UDP, state.SCTP} {
		for _, v6 := range []bool{false, true} {
			b := newBatch(proto, v6, stale)
			if b.empty() {
				continue
			}
			if err := ctx.Err(); err != nil {
				return deleted, err
			}
			if b.wantsLocal() {
				if b.local, err = c.localAddrs(); err != nil {
					return deleted, err
				}
			}
			n, err := b.run(conn)
			deleted += n
			if err != nil {
				return deleted, err
			}
		}
	}
	return deleted, nil
}

// Reconcile deletes every entry of UDP and SCTP that leads from one of the
// frontends to a backend that is not among those that serve it: what a start
// needs, when nobody knows what happened before. It looks at every entry of
// these protocols. Untranslated connections are left to Delete.
func (c *Cleaner) Reconcile(ctx context.Context, serving map[state.Key][]state.Backend) (deleted int, err error) {
	kinds := map[kind]bool{}
	for k := range serving {
		kinds[kind{k.Proto, k.Addr.Is6()}] = true
	}
	if len(kinds) == 0 {
		return 0, nil
	}
	conn, err := c.dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	for k := range kinds {
		if err := ctx.Err(); err != nil {
			return deleted, err
		}
		n, err := sweep(conn, k, filter{}, func(e *entry) bool {
			if e.dst == e.replySrc {
				return false
			}
			list, ok := serving[state.Key{Addr: e.dst.Addr(), Port: e.dst.Port(), Proto: e.proto}]
			if !ok {
				list, ok = serving[state.Key{Addr: anywhere(k.v6), Port: e.dst.Port(), Proto: e.proto}]
				// A node port with nobody serving it is a number like any other:
				// who knows whose connection that is.
				ok = ok && len(list) > 0
			}
			return ok && !slices.Contains(list, state.Backend{Addr: e.replySrc})
		})
		deleted += n
		if err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

func anywhere(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// kind is what one dump is of.
type kind struct {
	proto state.Protocol
	v6    bool
}

func (c *Cleaner) dial() (*netlink.Conn, error) {
	cfg := &netlink.Config{}
	if c.ns != nil {
		cfg.NetNS = c.ns.Fd()
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, cfg)
	if err != nil {
		return nil, fmt.Errorf("open ctnetlink: %w", err)
	}
	// A dump comes in bursts.
	conn.SetReadBuffer(4 << 20)
	return conn, nil
}

// localAddrs returns the addresses of this node.
func (c *Cleaner) localAddrs() (map[netip.Addr]bool, error) {
	out := map[netip.Addr]bool{}
	read := func() error {
		list, err := net.InterfaceAddrs()
		if err != nil {
			return fmt.Errorf("list this node's addresses: %w", err)
		}
		for _, a := range list {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					out[ip.Unmap()] = true
				}
			}
		}
		return nil
	}
	if c.ns != nil {
		return out, c.ns.Do(read)
	}
	return out, read()
}

// batch is what is stale of one protocol and family.
type batch struct {
	proto  state.Protocol
	v6     bool
	byAddr map[netip.AddrPort]map[netip.AddrPort]bool // frontend → backends
	byPort map[uint16]map[netip.AddrPort]bool         // node port → backends
	// goneAddr and gonePort are frontends and node ports that there are no more.
	goneAddr map[netip.AddrPort]bool
	gonePort map[uint16]bool
	local    map[netip.Addr]bool
	filter   filter
}

// filter narrows what the kernel sends; zero fields do not.
type filter struct {
	dst  netip.AddrPort // original destination; the address may be missing
	back netip.AddrPort // source of replies
}

func newBatch(proto state.Protocol, v6 bool, stale []state.Stale) *batch {
	b := &batch{proto: proto, v6: v6,
		byAddr: map[netip.AddrPort]map[netip.AddrPort]bool{}, byPort: map[uint16]map[netip.AddrPort]bool{},
		goneAddr: map[netip.AddrPort]bool{}, gonePort: map[uint16]bool{}}
	first := true
	for _, s := range stale {
		if s.Key.Proto != proto || s.Key.Addr.Is6() != v6 {
			continue
		}
		dst := netip.AddrPortFrom(s.Key.Addr, s.Key.Port)
		port := s.Key.Addr.IsUnspecified()
		if port {
			dst = netip.AddrPortFrom(netip.Addr{}, s.Key.Port)
		}
		switch {
		case port && s.Gone:
			b.gonePort[s.Key.Port] = true
		case port:
			put(b.byPort, s.Key.Port, s.Backend.Addr)
		case s.Gone:
			b.goneAddr[dst] = true
		default:
			put(b.byAddr, dst, s.Backend.Addr)
		}
		if first {
			b.filter, first = filter{dst, s.Backend.Addr}, false
		}
		if b.filter.dst != dst {
			b.filter.dst = netip.AddrPort{}
		}
		if b.filter.back != s.Backend.Addr {
			b.filter.back = netip.AddrPort{}
		}
	}
	return b
}

func put[K comparable](m map[K]map[netip.AddrPort]bool, k K, v netip.AddrPort) {
	if m[k] == nil {
		m[k] = map[netip.AddrPort]bool{}
	}
	m[k][v] = true
}

func (b *batch) empty() bool {
	return len(b.byAddr)+len(b.byPort)+len(b.goneAddr)+len(b.gonePort) == 0
}

// wantsLocal reports whether it matters which addresses are the node's own: for
// untranslated connections to a node port, and for any to one that is gone.
func (b *batch) wantsLocal() bool {
	if len(b.gonePort) > 0 {
		return true
	}
	for _, m := range b.byPort {
		if m[netip.AddrPort{}] {
			return true
		}
	}
	return false
}

// matches reports whether an entry is one of the stale ones.
func (b *batch) matches(e *entry) bool {
	if e.proto != b.proto {
		return false
	}
	translated := e.dst != e.replySrc
	back := e.replySrc
	if !translated {
		back = netip.AddrPort{}
	}
	if b.byAddr[e.dst][back] || translated && (b.goneAddr[e.dst] || b.gonePort[e.dst.Port()] && b.local[e.dst.Addr()]) {
		return true
	}
	return b.byPort[e.dst.Port()][back] && (translated || b.local[e.dst.Addr()])
}

// run deletes what matches.
func (b *batch) run(conn *netlink.Conn) (deleted int, err error) {
	return sweep(conn, kind{b.proto, b.v6}, b.filter, b.matches)
}

// sweep dumps entries of a kind, as far as the filter narrows them, and deletes
// those that match.
func sweep(conn *netlink.Conn, k kind, f filter, matches func(*entry) bool) (deleted int, err error) {
	family := uint8(unix.AF_INET)
	if k.v6 {
		family = unix.AF_INET6
	}
	data, err := f.encode(family, k.proto)
	if err != nil {
		return 0, err
	}
	msgs, err := conn.Execute(request(msgGet, netlink.Dump, data))
	// EINTR tells that entries came and went meanwhile: what was sent is still
	// true of the entries that it names.
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, fmt.Errorf("dump connection tracking entries: %w", err)
	}
	for _, m := range msgs {
		e, err := decode(m.Data)
		if err != nil || e.proto != k.proto || !matches(&e) {
			continue
		}
		data, err := e.encode(family)
		if err != nil {
			return deleted, err
		}
		_, err = conn.Execute(request(msgDelete, netlink.Acknowledge, data))
		switch {
		case err == nil:
			deleted++
		case errors.Is(err, os.ErrNotExist): // gone by itself
		default:
			return deleted, fmt.Errorf("delete connection tracking entry %v → %v: %w", e.src, e.dst, err)
		}
	}
	return deleted, nil
}
