package nft

import (
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/proxy/state"
)

// Names of chains. Those with a hook are base chains; each of the others is
// there once per family.
const (
	chainNATPrerouting  = "nat-prerouting"
	chainNATOutput      = "nat-output"
	chainNATPostrouting = "nat-postrouting"
	chainRefuseIn       = "refuse-prerouting"
	chainRefuseOut      = "refuse-output"
	chainLocalhostOut   = "localhost-output"
	chainLocalhostIn    = "localhost-input"

	chainServices    = "services"
	chainRefuse      = "refuse"
	chainReject      = "do-reject" // one for both families
	chainMasq        = "masq"
	chainDoMasq      = "do-masquerade" // one for both families
	chainHairpin     = "hairpin"
	chainOutside     = "outside"
	chainNodeHairpin = "node-hairpin"
	chainNodeOutside = "node-outside"
)

// Times after which what packets taught us is forgotten, in milliseconds. Both
// need only last from one hook to the next of the same packet.
const (
	hairpinMS = 2000
	podSeenMS = 5000
)

// Hook priorities (NF_IP_PRI_*): the names nft(8) has for them are dstnat
// (-100), srcnat (100) and raw (-300).
const (
	prioDstNAT  = -100
	prioSrcNAT  = 100
	prioRefuse  = prioDstNAT + 10
	prioRaw     = -300
	prioPostNAT = prioSrcNAT + 10
)

// skeleton is every chain that does not depend on a class. There is a fixed
// number of them, and of rules in them, whatever the number of frontends: rules
// depend on the node's facts only.
func (p *Programmer) skeleton() []chainSpec {
	dispatch := func(r rule, base string) (rules []rule) {
		for _, f := range families {
			rules = append(rules, r.family(f).gotoChain(p.name(base, f)))
		}
		return rules
	}
	newPacket := rule{}.ct(unix.NFT_CT_STATE, 8, -1).and(8, host32(ctStateNew)...).notEqual(8, 0, 0, 0, 0)
	translated := rule{}.ct(unix.NFT_CT_STATUS, 8, -1).and(8, host32(ctStatusDNAT)...)

	chains := []chainSpec{{
		name: chainReject,
		rules: []rule{
			rule{}.meta(unix.NFT_META_L4PROTO, 8).equal(8, byte(state.TCP)).reject(unix.NFT_REJECT_TCP_RST, 0),
			rule{}.reject(unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_PORT_UNREACH),
		},
	}, {
		name: chainDoMasq, rules: []rule{rule{}.masquerade()},
	}}
	for i, f := range families {
		chains = append(chains, p.familyChains(i, f)...)
	}
	refuse := dispatch(newPacket.join(translated.equal(8, 0, 0, 0, 0)), chainRefuse)
	chains = append(chains,
		chainSpec{chainNATPrerouting, "nat", unix.NF_INET_PRE_ROUTING, prioDstNAT, append(p.learnPods(), dispatch(rule{}, chainServices)...)},
		chainSpec{chainNATOutput, "nat", unix.NF_INET_LOCAL_OUT, prioDstNAT, dispatch(rule{}, chainServices)},
		chainSpec{chainRefuseIn, "filter", unix.NF_INET_PRE_ROUTING, prioRefuse, refuse},
		chainSpec{chainRefuseOut, "filter", unix.NF_INET_LOCAL_OUT, prioRefuse, refuse},
		chainSpec{chainNATPostrouting, "nat", unix.NF_INET_POST_ROUTING, prioSrcNAT, dispatch(translated.notEqual(8, 0, 0, 0, 0), chainMasq)},
		chainSpec{chainLocalhostOut, "filter", unix.NF_INET_LOCAL_OUT, prioRaw, p.localhostOut()},
		chainSpec{chainLocalhostIn, "filter", unix.NF_INET_LOCAL_IN, prioPostNAT, p.localhostIn()},
	)
	return chains
}

// join is r and then what other matches.
func (r rule) join(other rule) rule {
	r.exprs = append(append([]byte(nil), r.exprs...), other.exprs...)
	return r
}

// family matches packets of a family.
func (r rule) family(f *family) rule {
	return r.meta(unix.NFT_META_NFPROTO, 8).equal(8, f.nfproto)
}

// classComment is what nft(8) cannot show: see findClass.
const classComment = "the marks stand for words 2 and 3 of what @services has for the packet"

// familyChains are the chains of a family that base chains and verdict maps
// lead to.
func (p *Programmer) familyChains(i int, f *family) []chainSpec {
	g := p.gens[i]
	ports := hasFamily(p.node.NodePortAddrs, f)
	classes := p.name(setClasses, f)

	// What to do with a new connection's destination.
	direct := rule{}.loadKey(f, false).findClass(p, f, g)
	byPort := rule{}.loadKey(f, true).findClass(p, f, g).toNodePort(p, f)
	svc := []rule{direct.find(f.reg.x+1, classes, unix.NFT_REG_VERDICT).comment(classComment)}
	if ports {
		svc = append(svc, byPort.find(f.reg.x+1, classes, unix.NFT_REG_VERDICT).comment(classComment))
	}

	// Who got no backend there: is it refused?
	refused := func(r rule) rule {
		return r.and(f.reg.x+2, host32(flagReject)...).notEqual(f.reg.x+2, 0, 0, 0, 0).gotoChain(chainReject).comment(classComment)
	}
	refuse := []rule{refused(direct)}
	if ports {
		refuse = append(refuse, refused(byPort))
	}
	daddr := rule{}.payload(netHeader, f.daddr, f.addrLen(), f.reg.d)
	refuse = append(refuse, daddr.lookup(f.reg.d, g.sets[clusterIPs].name).gotoChain(chainReject))
	if hasFamily(p.node.ServiceCIDRs, f) {
		refuse = append(refuse, daddr.lookup(f.reg.d, p.name(setRanges, f)).drop())
	}

	outside := []rule{rule{}.gotoChain(p.name(chainHairpin, f))}
	if pods := p.fromPods(f); len(pods) > 0 {
		outside = nil
		for _, r := range pods {
			outside = append(outside, r.gotoChain(p.name(chainHairpin, f)))
		}
		outside = append(outside, rule{}.gotoChain(chainDoMasq))
	}
	// A connection to itself: entries of the hairpin set are an address twice,
	// so source . destination is in it only if both are the same.
	same := rule{}.loadSource(f).
		payload(netHeader, f.saddr, f.addrLen(), f.reg.d).
		dynset(dynUpdate, f.reg.s, 0, p.name(setHairpin, f), hairpinMS).
		payload(netHeader, f.daddr, f.addrLen(), f.reg.d).
		lookup(f.reg.s, p.name(setHairpin, f)).gotoChain(chainDoMasq)
	node := rule{}.fromNode(f).gotoChain(chainDoMasq)
	return []chainSpec{
		{name: p.name(chainServices, f), rules: svc},
		{name: p.name(chainRefuse, f), rules: refuse},
		{name: p.name(chainMasq, f), rules: p.masqRules(f, g, ports)},
		{name: p.name(chainHairpin, f), rules: []rule{same}},
		{name: p.name(chainOutside, f), rules: outside},
		{name: p.name(chainNodeHairpin, f), rules: []rule{node, rule{}.gotoChain(p.name(chainHairpin, f))}},
		{name: p.name(chainNodeOutside, f), rules: []rule{node, rule{}.gotoChain(p.name(chainOutside, f))}},
	}
}

// toNodePort matches packets to an address where node ports answer. It leaves
// the registers from p on alone.
func (r rule) toNodePort(p *Programmer, f *family) rule {
	r = r.addrType(unix.NFTA_FIB_F_DADDR, f.reg.s).equal(f.reg.s, host32(rtnLocal)...).
		payload(netHeader, f.daddr, f.addrLen(), f.reg.s).lookup(f.reg.s, p.name(setNodePorts, f))
	if p.localhost[familyIndex(f)].IsValid() || !contains(p.node.NodePortAddrs, f.loopback()) {
		return r
	}
	// Nothing can stand for a loopback source: leave loopback alone.
	if f.v6 {
		return r.notEqual(f.reg.s, f.loopbackAddr()...)
	}
	return r.and(f.reg.s, 255, 0, 0, 0).notEqual(f.reg.s, 127, 0, 0, 0)
}

// masqRules decide whether a translated connection is masqueraded. What it was
// addressed to is read from its conntrack entry, so that no packet mark is
// needed, and the class found there says the mode.
func (p *Programmer) masqRules(f *family, g *generation, ports bool) []rule {
	key := func(any bool) rule {
		r := rule{}
		if any {
			r = r.immediate(f.reg.d, f.anyAddr().AsSlice())
		} else {
			r = r.ct(f.ctDst, f.reg.d, dirOriginal)
		}
		return r.meta(unix.NFT_META_L4PROTO, f.reg.p).ct(unix.NFT_CT_PROTO_DST, f.reg.t, dirOriginal).findClass(p, f, g)
	}
	mode := func(r rule) rule {
		return r.and(f.reg.x+2, host32(modeMask)...).
			find(f.reg.x+2, p.name(setModes, f), unix.NFT_REG_VERDICT).comment(classComment)
	}
	rules := []rule{mode(key(false))}
	if !ports {
		return rules
	}
	if p.localhost[familyIndex(f)].IsValid() {
		// See localhostOut: the source is a stand-in.
		rules = append(rules, key(true).ct(f.ctDst, f.reg.s, dirOriginal).inLoopback(f, f.reg.s).gotoChain(chainDoMasq).comment(classComment))
	}
	return append(rules, mode(key(true)))
}

// modes is the content of the masquerade map.
func (p *Programmer) modes(f *family) map[uint32]string {
	return map[uint32]string{
		uint32(state.MasqueradeNever):                   p.name(chainHairpin, f),
		uint32(state.MasqueradeOffCluster):              p.name(chainOutside, f),
		uint32(state.MasqueradeAlways):                  chainDoMasq,
		uint32(state.MasqueradeNever) | flagInside:      p.name(chainNodeHairpin, f),
		uint32(state.MasqueradeOffCluster) | flagInside: p.name(chainNodeOutside, f),
		uint32(state.MasqueradeAlways) | flagInside:     chainDoMasq,
	}
}

// learnPods are rules that remember the sources of packets which come in by a
// Pod interface: where it matters, after routing, the interface is no longer
// known.
func (p *Programmer) learnPods() (rules []rule) {
	for _, pattern := range p.node.PodNetwork.Interfaces {
		name := make([]byte, unix.IFNAMSIZ)
		n := copy(name[:unix.IFNAMSIZ-1], pattern) + 1 // the zero too: the whole name
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			n = copy(name, prefix)
		}
		for _, f := range families {
			r := rule{}.family(f)
			if n > 0 {
				r = r.meta(unix.NFT_META_IIFNAME, 8).equal(8, name[:n]...)
			}
			rules = append(rules, r.loadSource(f).dynset(dynUpdate, f.reg.s, 0, p.name(setPodSeen, f), podSeenMS))
		}
	}
	return rules
}

// hasFamily reports whether one of the prefixes is of the family.
func hasFamily(prefixes []netip.Prefix, f *family) bool {
	for _, x := range prefixes {
		if x.Addr().Is6() == f.v6 {
			return true
		}
	}
	return false
}

func familyIndex(f *family) int {
	if f.v6 {
		return 1
	}
	return 0
}
