package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/proxy/state"
)

// Key types of nft(8), so that it can list our sets (its enum datatypes).
const (
	typeIPv4    = 7
	typeIPv6    = 8
	typeInteger = 4
	typeProto   = 12
	typeService = 13
	typeMark    = 19
	typeVerdict = 0xffffff00 // NFT_DATA_VERDICT
)

// concat is the type of a concatenation: six bits for each part.
func concat(types ...uint32) (t uint32) {
	for _, p := range types {
		t = t<<6 | p
	}
	return t
}

// family is what differs between IPv4 and IPv6: header offsets, the registers
// a key lies in, names.
//
// Registers are four bytes each, the kernel's NFT_REG32_00 (8) to NFT_REG32_15
// (23). The parts of a key always lie in this order, without gaps, so that a run
// of them is a key as it stands, and what a lookup leaves in reg.x extends it:
//
//	saddr daddr proto dport x…        IPv4: 8 9 10 11 12…   IPv6: 8-11 12-15 16 17 18…
//
//	      daddr proto dport           services -> x: record
//	      daddr proto dport slot      backends -> x: addr port
//	      daddr proto dport slot      sticky   -> x: 0 addr port
//	saddr daddr proto dport           affinity -> x: dport addr port
//
// and, with the key loaded once more one register further on,
//
//	daddr proto dport addr port   members
type family struct {
	v6      bool
	suffix  string // "4" or "6", the end of every name
	nfproto uint8
	words   uint32 // an address in registers
	saddr   uint32 // offsets in the network header
	daddr   uint32
	csum    int    // offset of the header checksum; -1 is none
	ctDst   uint32 // ct key of the original destination
	typ     uint32
	reg     struct{ s, d, p, t, x, port uint32 }
}

var families = [2]*family{newFamily(false), newFamily(true)}

func newFamily(v6 bool) *family {
	f := &family{suffix: "4", nfproto: unix.NFPROTO_IPV4, words: 1, saddr: 12, daddr: 16, csum: 10, ctDst: ctDstIP, typ: typeIPv4}
	if v6 {
		f = &family{v6: true, suffix: "6", nfproto: unix.NFPROTO_IPV6, words: 4, saddr: 8, daddr: 24, csum: -1, ctDst: ctDstIP6, typ: typeIPv6}
	}
	f.reg.s = unix.NFT_REG32_00
	f.reg.d = f.reg.s + f.words
	f.reg.p = f.reg.d + f.words
	f.reg.t = f.reg.p + 1
	f.reg.x = f.reg.t + 1
	f.reg.port = f.reg.x + f.words
	return f
}

// familyOf returns the family of an address, and its place in families.
func familyOf(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

func (f *family) addrLen() uint32 { return 4 * f.words }

func (f *family) anyAddr() netip.Addr {
	if f.v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (f *family) loopback() netip.Prefix {
	if f.v6 {
		return netip.PrefixFrom(netip.IPv6Loopback(), 128)
	}
	return netip.MustParsePrefix("127.0.0.0/8")
}

// Kinds of sets that hold frontends. Those of one family are replaced
// together, never singly: see generation.
type kind int

const (
	services   kind = iota // daddr . proto . dport : record
	backends               // daddr . proto . dport . slot : addr . port, of frontends without affinity
	sticky                 // daddr . proto . dport . slot : 0 . addr . port, of those with affinity
	members                // daddr . proto . dport . addr . port, of frontends with affinity
	sources                // daddr . proto . dport . saddr, intervals, of restricted frontends
	clusterIPs             // daddr of every frontend that is a cluster address
	stamp                  // one number, that of all frontends together: see adopt
	kinds
)

var kindNames = [kinds]string{"services", "backends", "sticky-backends", "members", "sources", "cluster-ips", "stamp"}

// Sets that are not of a generation: one of each per family, small or filled
// by packets.
const (
	setClasses   = "classes"        // class : verdict
	setModes     = "modes"          // masquerade mode : verdict
	setAffinity  = "affinity"       // saddr . daddr . proto . dport : dport . addr . port, by packets
	setHairpin   = "hairpin"        // saddr . saddr, by packets
	setPods      = "pod-networks"   // saddr, intervals
	setPodSeen   = "pod-clients"    // saddr of packets that came in by a Pod interface, by packets
	setNodePorts = "nodeport-addrs" // daddr, intervals
	setRanges    = "service-ranges" // daddr, intervals: the Service CIDRs
)

// setSpec is what makes a set. Two sets of the same spec are interchangeable.
type setSpec struct {
	name              string
	flags             uint32
	keyType, keyLen   uint32
	dataType, dataLen uint32
	size              uint32 // elements it can hold; 0 is no limit
	order             uint32 // the key's byte order, for nft(8)
	count             int    // how many elements a set in the kernel has; -1 if it does not tell
}

// Byte orders of nft(8); 0 leaves it to the type.
const (
	orderHost = 1
	orderBig  = 2
)

const (
	affinitySize = 1 << 18 // clients that are remembered, per family
	dynamicSize  = 1 << 16 // entries of the short-lived sets
)

// spec returns the spec of a set of frontends, with room for size elements.
func (f *family) spec(k kind, name string, size uint32) setSpec {
	a := f.addrLen()
	s := setSpec{name: name, size: size}
	switch k {
	case services:
		s.flags = unix.NFT_SET_MAP
		s.keyType, s.keyLen = concat(f.typ, typeProto, typeService), a+8
		s.dataType, s.dataLen = concat(typeMark, typeMark, typeMark, typeMark), 4*recordWords
	case backends:
		s.flags = unix.NFT_SET_MAP
		s.keyType, s.keyLen = concat(f.typ, typeProto, typeService, typeMark), a+12
		s.dataType, s.dataLen = concat(f.typ, typeService), a+4
	case sticky:
		s.flags = unix.NFT_SET_MAP
		s.keyType, s.keyLen = concat(f.typ, typeProto, typeService, typeMark), a+12
		s.dataType, s.dataLen = concat(typeMark, f.typ, typeService), a+8
	case members:
		s.keyType, s.keyLen = concat(f.typ, typeProto, typeService, f.typ, typeService), a+8+a+4
	case sources:
		s.flags = unix.NFT_SET_INTERVAL
		// One long number: as a concatenation it would be another sort of set
		// to the kernel, and to nft(8) a reason to crash.
		s.keyType, s.keyLen, s.order = typeInteger, a+8+a, orderBig
		s.size = 0 // a tree, not a table: nothing to size
	case clusterIPs:
		s.keyType, s.keyLen = f.typ, a
	case stamp:
		s.keyType, s.keyLen, s.order, s.size = typeInteger, 8, orderBig, 0
	}
	return s
}

// fixedSets are the sets outside of generations.
func (p *Programmer) fixedSets(f *family) []setSpec {
	a := f.addrLen()
	dynamic := uint32(unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL)
	return []setSpec{
		{name: p.name(setClasses, f), flags: unix.NFT_SET_MAP, keyType: concat(typeMark, typeMark), keyLen: 8, dataType: typeVerdict},
		{name: p.name(setModes, f), flags: unix.NFT_SET_MAP, keyType: typeMark, keyLen: 4, dataType: typeVerdict, order: orderHost},
		{name: p.name(setAffinity, f), flags: unix.NFT_SET_MAP | dynamic, size: affinitySize,
			keyType: concat(f.typ, f.typ, typeProto, typeService), keyLen: 2*a + 8, dataType: concat(typeService, f.typ, typeService), dataLen: a + 8},
		{name: p.name(setHairpin, f), flags: dynamic, size: dynamicSize, keyType: concat(f.typ, f.typ), keyLen: 2 * a},
		{name: p.name(setPodSeen, f), flags: dynamic, size: dynamicSize, keyType: f.typ, keyLen: a},
		{name: p.name(setPods, f), flags: unix.NFT_SET_INTERVAL, keyType: f.typ, keyLen: a},
		{name: p.name(setNodePorts, f), flags: unix.NFT_SET_INTERVAL, keyType: f.typ, keyLen: a},
		{name: p.name(setRanges, f), flags: unix.NFT_SET_INTERVAL, keyType: f.typ, keyLen: a},
	}
}

// name is the name of a set or chain of a family in this layout.
func (p *Programmer) name(base string, f *family) string { return base + p.layout + f.suffix }

// generation names the sets that hold a family's frontends. When one of them
// becomes too small, or does not fit at start, a new generation of all is made
// and filled beside the old, and one transaction points the rules to it.
type generation struct {
	sets  [kinds]setSpec
	count [kinds]int // elements
}

// newGeneration names a generation; serial 0 has the plain names.
func (p *Programmer) newGeneration(f *family, serial int, need [kinds]int) *generation {
	g := &generation{}
	for k := range kinds {
		name := p.name(kindNames[k], f)
		if serial > 0 {
			name = fmt.Sprintf("%s-g%d", name, serial)
		}
		g.sets[k] = f.spec(k, name, roomFor(need[k]))
	}
	return g
}

// roomFor is the Size of a set that holds n elements now: at least a quarter
// more. The kernel makes a power of two of buckets, a third more than Size, so
// sizes are three quarters of powers of two.
func roomFor(n int) uint32 {
	size := uint32(1536)
	for int(size)*4/5 < n {
		size *= 2
	}
	return size
}

// insideSlot is the first slot of a frontend's InsideBackends; maxSlots is how
// many backends of each sort a frontend can have.
const (
	insideSlot = 1 << 16
	maxSlots   = 1<<16 - 1
)

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return append(b, v[:]...)
	}
	v := a.As16()
	return append(b, v[:]...)
}

// appendKey is daddr . proto . dport, each part padded to four bytes.
func appendKey(b []byte, k state.Key) []byte {
	b = appendAddr(b, k.Addr)
	return append(b, byte(k.Proto), 0, 0, 0, byte(k.Port>>8), byte(k.Port), 0, 0)
}

func appendSlot(b []byte, slot uint32) []byte { return binary.NativeEndian.AppendUint32(b, slot) }

// appendBackend is addr . port. The padding behind the port tells the two
// sorts of a frontend's backends apart; nobody but the members set looks at it.
func appendBackend(b []byte, be state.Backend, inside bool) []byte {
	b = appendAddr(b, be.Addr.Addr())
	port := be.Addr.Port()
	b = append(b, byte(port>>8), byte(port), 0, 0)
	if inside {
		b[len(b)-1] = 1
	}
	return b
}

// parseKey reads what appendKey wrote, from the front of b.
func (f *family) parseKey(b []byte) (k state.Key, rest []byte, ok bool) {
	n := int(f.addrLen())
	if len(b) < n+8 {
		return k, nil, false
	}
	k.Addr, _ = netip.AddrFromSlice(b[:n])
	k.Proto = state.Protocol(b[n])
	k.Port = binary.BigEndian.Uint16(b[n+4:])
	return k, b[n+8:], true
}
