package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// HostPort is a port of the node that leads to a port of a Pod.
type HostPort struct {
	// HostIP is the node's address that answers; invalid for every one of them.
	HostIP   netip.Addr
	HostPort uint16
	Protocol uint8 // IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP
	PodPort  uint16
}

// hostPortTable is in the node's namespace.
func (c *Config) hostPortTable() string { return c.Prefix + "-hostport" }

// SetHostPorts makes the node's ports lead to exactly these Pods. It replaces
// the whole table in one transaction: host ports are few.
//
// For each port: packets to a local address and that port are sent to the Pod,
// and a Pod that reaches itself that way is masqueraded, since it would not
// recognise the answer otherwise.
func (nd *Node) SetHostPorts(ports map[*Pod][]HostPort) error {
	conn, err := nftables.New(nftables.WithNetNSFd(nd.NS.Fd()))
	if err != nil {
		return err
	}
	t := conn.AddTable(&nftables.Table{Name: nd.net.cfg.hostPortTable(), Family: nftables.TableFamilyINet})
	conn.DelTable(t)
	if len(ports) > 0 {
		conn.AddTable(t)
		dnat := conn.AddChain(&nftables.Chain{Name: "hostports", Table: t})
		for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
			base := conn.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeNAT,
				Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
			conn.AddRule(&nftables.Rule{Table: t, Chain: base, Exprs: []expr.Any{
				&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
				&expr.Verdict{Kind: expr.VerdictJump, Chain: dnat.Name},
			}})
		}
		hairpin := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		for pod, list := range ports {
			for _, a := range pod.Addrs {
				for _, hp := range list {
					if hp.HostIP.IsValid() && !hp.HostIP.IsUnspecified() && hp.HostIP.Is4() != a.Is4() {
						continue
					}
					conn.AddRule(&nftables.Rule{Table: t, Chain: dnat, Exprs: dnatRule(a, hp)})
				}
				conn.AddRule(&nftables.Rule{Table: t, Chain: hairpin, Exprs: append(matchAddr(a, true), append(matchAddr(a, false)[2:], &expr.Masq{})...)})
			}
		}
	}
	if err := conn.Flush(); err != nil && !(len(ports) == 0 && errors.Is(err, unix.EOPNOTSUPP)) {
		return fmt.Errorf("set host ports of node %s: %w", nd.Name, err)
	}
	return nil
}

// matchAddr compares the source or destination with an address.
func matchAddr(a netip.Addr, source bool) []expr.Any {
	proto, size, off := byte(unix.NFPROTO_IPV6), uint32(16), uint32(24)
	if a.Is4() {
		proto, size, off = unix.NFPROTO_IPV4, 4, 16
	}
	if source {
		off -= size
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: size},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

func dnatRule(pod netip.Addr, hp HostPort) []expr.Any {
	family := uint32(unix.NFPROTO_IPV6)
	if pod.Is4() {
		family = unix.NFPROTO_IPV4
	}
	var e []expr.Any
	if hp.HostIP.IsValid() && !hp.HostIP.IsUnspecified() {
		e = matchAddr(hp.HostIP, false)
	} else {
		e = matchAddr(pod, false)[:2]
	}
	return append(e,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{hp.Protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(hp.HostPort)},
		&expr.Immediate{Register: 1, Data: pod.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(hp.PodPort)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	)
}
