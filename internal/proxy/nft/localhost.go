package nft

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Node ports on localhost.
//
// A connection from 127.0.0.1 to 127.0.0.1:30080 that is sent to a Pod has a
// source which must not leave the machine, and answers to it must not come in:
// routing refuses both, unless route_localnet opens the machine's loopback
// services to its neighbours (CVE-2020-8558). For ::1 there is no such switch.
//
// So the source is exchanged before conntrack sees the packet, for an address
// of this node, and the destination of answers is exchanged back when
// everybody else is done with them: after conntrack has made their source the
// loopback address again, which is after routing. In between there is nothing
// of loopback in the packet that routing would look at. Neither exchange keeps
// state, no sysctl is touched, and what comes from outside with a loopback
// address is dropped by the kernel as ever.

// inLoopback matches a loopback address in a register.
func (r rule) inLoopback(f *family, reg uint32) rule {
	if f.v6 {
		return r.equal(reg, f.loopback().Addr().AsSlice()...)
	}
	return r.and(reg, 255, 0, 0, 0).equal(reg, 127, 0, 0, 0)
}

// loopbackAddr is the source the kernel gives what it sends to a loopback
// address.
func (f *family) loopbackAddr() []byte {
	if f.v6 {
		return netip.IPv6Loopback().AsSlice()
	}
	return []byte{127, 0, 0, 1}
}

func (p *Programmer) localhostOut() (rules []rule) {
	for i, f := range families {
		addr := p.localhost[i]
		if !addr.IsValid() || !hasFamily(p.node.NodePortAddrs, f) {
			continue
		}
		rules = append(rules, rule{}.family(f).
			payload(netHeader, f.daddr, f.addrLen(), f.reg.s).inLoopback(f, f.reg.s).
			payload(netHeader, f.saddr, f.addrLen(), f.reg.s).equal(f.reg.s, f.loopbackAddr()...).
			payload(netHeader, f.daddr, f.addrLen(), f.reg.s).lookup(f.reg.s, p.name(setNodePorts, f)).
			loadKey(f, true).findClass(p, f, p.gens[i]).
			and(f.reg.x+2, host32(flagServed)...).notEqual(f.reg.x+2, 0, 0, 0, 0).
			immediate(f.reg.s, addr.AsSlice()).
			writeAddr(f.reg.s, f.saddr, f.addrLen(), f.csum).comment(classComment))
	}
	return rules
}

func (p *Programmer) localhostIn() (rules []rule) {
	for i, f := range families {
		if !p.localhost[i].IsValid() || !hasFamily(p.node.NodePortAddrs, f) {
			continue
		}
		rules = append(rules, rule{}.family(f).
			payload(netHeader, f.saddr, f.addrLen(), f.reg.s).inLoopback(f, f.reg.s).
			ct(unix.NFT_CT_DIRECTION, f.reg.s, -1).equal(f.reg.s, dirReply).
			ct(unix.NFT_CT_STATUS, f.reg.s, -1).and(f.reg.s, host32(ctStatusDNAT)...).notEqual(f.reg.s, 0, 0, 0, 0).
			immediate(f.reg.s, f.loopbackAddr()).
			writeAddr(f.reg.s, f.daddr, f.addrLen(), f.csum))
	}
	return rules
}

// findLocalhost chooses the addresses that stand for loopback sources: any
// will do that routing takes for this node's own, because what leaves the node
// is masqueraded. One that is in use stays as long as the node has it. Families
// without node ports on loopback, and nodes without addresses, have none.
func (p *Programmer) findLocalhost() (found [2]netip.Addr) {
	for i, f := range families {
		if contains(p.node.NodePortAddrs, f.loopback()) {
			found[i] = p.ownAddr(f, p.localhost[i])
		}
	}
	return found
}

// contains reports whether some address of x is in one of the prefixes.
func contains(prefixes []netip.Prefix, x netip.Prefix) bool {
	for _, c := range prefixes {
		if c.Overlaps(x) {
			return true
		}
	}
	return false
}

// ownAddr is the lowest global address of the node, or current if the node has
// that; invalid if it has none.
func (p *Programmer) ownAddr(f *family, current netip.Addr) (best netip.Addr) {
	err := inNS(p.ns, func() error {
		fam := netlink.FAMILY_V4
		if f.v6 {
			fam = netlink.FAMILY_V6
		}
		addrs, err := netlink.AddrList(nil, fam)
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			ip = ip.Unmap()
			if !ok || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || a.Flags&unix.IFA_F_TENTATIVE != 0 {
				continue
			}
			if ip == current {
				best = ip
				return nil
			}
			if !best.IsValid() || ip.Less(best) {
				best = ip
			}
		}
		return err
	})
	if err != nil {
		p.log.Error("cannot list the node's addresses; node ports on localhost may not answer", "err", err)
		return current
	}
	return best
}

// addrSettle is how long address changes are left to settle before the node's
// addresses are read again: Pods that start bring one each.
const addrSettle = 200 * time.Millisecond

// watchAddrs keeps p.localhost an address that the node has, until done.
func (p *Programmer) watchAddrs() error {
	updates := make(chan netlink.AddrUpdate, 64)
	opt := netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) {
			select {
			case <-p.done: // its way of ending
			default:
				p.log.Warn("watching the node's addresses", "err", err)
			}
		},
		ReceiveBufferSize: 1 << 20,
	}
	if p.ns != nil {
		h := netns.NsHandle(p.ns.Fd())
		opt.Namespace = &h
	}
	if err := netlink.AddrSubscribeWithOptions(updates, p.done, opt); err != nil {
		return fmt.Errorf("nft: watch the node's addresses: %w", err)
	}
	p.watchers.Go(func() {
		settle := time.NewTimer(0)
		for {
			select {
			case <-p.done:
				for range updates { // until the subscription has ended
				}
				return
			case _, ok := <-updates:
				if !ok {
					select {
					case <-p.done:
						return
					default:
					}
					p.log.Error("watching the node's addresses ended; node ports on localhost will not follow them")
					<-p.done
					return
				}
				settle.Reset(addrSettle)
			case <-settle.C:
				p.followAddrs()
			}
		}
	})
	return nil
}

// followAddrs writes the rules anew if the node's addresses ask for it.
func (p *Programmer) followAddrs() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ready || p.closed || p.findLocalhost() == p.localhost {
		return
	}
	err := p.dial()
	if err == nil {
		p.ch.reset()
		err = p.install(context.Background(), nil, p.needs(), [2]bool{})
	}
	if err != nil {
		err = p.fail(fmt.Errorf("node ports on localhost: %w", err))
		p.monitor.signal("programming failed; the table has to be replaced", "err", err)
	}
}
