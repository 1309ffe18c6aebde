package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// tableName is the one nftables table in the machine's namespace.
func (c *Config) tableName() string { return c.Prefix + "-egress" }

// inside is every prefix that belongs to this network.
func (c *Config) inside() []netip.Prefix {
	if c.Host {
		return c.PodCIDRs
	}
	return append(append([]netip.Prefix{}, c.NodeCIDRs...), c.PodCIDRs...)
}

// masquerade gives what leaves the network for the world the machine's own
// address, in a table of its own, replaced whole:
//
//	table inet <prefix>-egress {
//	  chain postrouting { type nat hook postrouting priority srcnat;
//	    ip saddr @inside4 ip daddr != @inside4 masquerade
//	    ip6 saddr @inside6 ip6 daddr != @inside6 masquerade } }
func (n *Network) masquerade() error {
	if err := deleteTable(n.machine, n.cfg.tableName()); err != nil {
		return err
	}
	conn, err := nftables.New(nftables.WithNetNSFd(n.machine.Fd()))
	if err != nil {
		return err
	}
	t := conn.AddTable(&nftables.Table{Name: n.cfg.tableName(), Family: nftables.TableFamilyINet})
	chain := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	for _, v4 := range []bool{true, false} {
		set := &nftables.Set{Table: t, Name: "inside6", KeyType: nftables.TypeIP6Addr, Interval: true}
		proto, size, saddr, daddr := byte(unix.NFPROTO_IPV6), uint32(16), uint32(8), uint32(24)
		if v4 {
			set.Name, set.KeyType = "inside4", nftables.TypeIPAddr
			proto, size, saddr, daddr = unix.NFPROTO_IPV4, 4, 12, 16
		}
		var elems []nftables.SetElement
		for _, p := range n.cfg.inside() {
			if p.Addr().Is4() == v4 {
				elems = append(elems, nftables.SetElement{Key: p.Masked().Addr().AsSlice()},
					nftables.SetElement{Key: after(p).AsSlice(), IntervalEnd: true})
			}
		}
		if len(elems) == 0 {
			continue
		}
		if err := conn.AddSet(set, elems); err != nil {
			return err
		}
		conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: saddr, Len: size},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: daddr, Len: size},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true},
			&expr.Counter{},
			&expr.Masq{},
		}})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make nftables table %s: %w", t.Name, err)
	}
	return nil
}

// after is the first address beyond a prefix.
func after(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a.Next()
}

// deleteTable removes a table of the inet family; none is no error.
func deleteTable(ns *netns.NS, name string) error {
	conn, err := nftables.New(nftables.WithNetNSFd(ns.Fd()))
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	// Adding first makes deleting sure to find one, in the same transaction.
	conn.AddTable(t)
	conn.DelTable(t)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("delete nftables table %s: %w", name, err)
	}
	return nil
}

func isLinkGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}
