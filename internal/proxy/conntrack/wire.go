package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/proxy/state"
)

// Numbers from linux/netfilter/nfnetlink_conntrack.h.
const (
	msgGet    = 1 // IPCTNL_MSG_CT_GET
	msgDelete = 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaFilterOrig  = 1
	ctaFilterReply = 2
)

// Which parts of a tuple a filter looks at, from net/netfilter/nf_internals.h
// (CTA_FILTER_F_*); in host byte order.
const (
	filterSrc     = 1 << 0
	filterDst     = 1 << 1
	filterProto   = 1 << 3
	filterSrcPort = 1 << 4
	filterDstPort = 1 << 5
)

func request(typ uint16, flags netlink.HeaderFlags, data []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | typ), Flags: netlink.Request | flags},
		Data:   data,
	}
}

// header is struct nfgenmsg.
func header(family uint8) []byte { return []byte{family, unix.NFNETLINK_V0, 0, 0} }

// tuple is one direction of a connection.
type tuple struct {
	src, dst netip.AddrPort
	proto    state.Protocol
}

// encode writes a tuple; the addresses' unset parts are left out.
func (t tuple) encode(ae *netlink.AttributeEncoder) error {
	ae.Nested(ctaTupleIP, func(ae *netlink.AttributeEncoder) error {
		for i, a := range []netip.Addr{t.src.Addr(), t.dst.Addr()} {
			switch {
			case a.Is4():
				ae.Bytes(ctaIPv4Src+uint16(i), a.AsSlice())
			case a.Is6():
				ae.Bytes(ctaIPv6Src+uint16(i), a.AsSlice())
			}
		}
		return nil
	})
	ae.Nested(ctaTupleProto, func(ae *netlink.AttributeEncoder) error {
		ae.Uint8(ctaProtoNum, uint8(t.proto))
		for i, p := range []uint16{t.src.Port(), t.dst.Port()} {
			if p != 0 {
				ae.Bytes(ctaProtoSrcPort+uint16(i), binary.BigEndian.AppendUint16(nil, p))
			}
		}
		return nil
	})
	return nil
}

// encode makes the body of a dump request. The kernel's comparison of IPv6
// addresses is the wrong way round (ctnetlink_filter_match_tuple lets pass what
// differs, seen on 6.18), so for them only ports and protocol narrow.
func (f filter) encode(family uint8, proto state.Protocol) ([]byte, error) {
	orig, reply := uint32(filterProto), uint32(0)
	if f.dst.Addr().Is4() {
		orig |= filterDst
	}
	if f.dst.Port() != 0 {
		orig |= filterDstPort
	}
	if f.back.IsValid() {
		reply = filterProto | filterSrcPort
		if f.back.Addr().Is4() {
			reply |= filterSrc
		}
	}
	ae := netlink.NewAttributeEncoder()
	ae.Nested(ctaTupleOrig, tuple{dst: f.dst, proto: proto}.encode)
	if reply != 0 {
		ae.Nested(ctaTupleReply, tuple{src: f.back, proto: proto}.encode)
	}
	ae.Nested(ctaFilter, func(ae *netlink.AttributeEncoder) error {
		ae.Bytes(ctaFilterOrig, nlenc.Uint32Bytes(orig))
		ae.Bytes(ctaFilterReply, nlenc.Uint32Bytes(reply))
		return nil
	})
	b, err := ae.Encode()
	return append(header(family), b...), err
}

// entry is one connection as the kernel tells it.
type entry struct {
	tuple                   // original direction
	replySrc netip.AddrPort // who answers: the backend, if it is translated
	id, zone []byte
}

var errShort = errors.New("short ctnetlink message")

func decode(b []byte) (e entry, err error) {
	if len(b) < 4 {
		return e, errShort
	}
	ad, err := netlink.NewAttributeDecoder(b[4:])
	if err != nil {
		return e, err
	}
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleOrig:
			ad.Nested(e.tuple.decode)
		case ctaTupleReply:
			var t tuple
			ad.Nested(t.decode)
			e.replySrc = t.src
		case ctaID:
			e.id = ad.Bytes()
		case ctaZone:
			e.zone = ad.Bytes()
		}
	}
	return e, ad.Err()
}

func (t *tuple) decode(ad *netlink.AttributeDecoder) error {
	var addrs [2]netip.Addr
	var ports [2]uint16
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleIP:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					a, _ := netip.AddrFromSlice(ad.Bytes())
					switch ad.Type() {
					case ctaIPv4Src, ctaIPv6Src:
						addrs[0] = a
					case ctaIPv4Dst, ctaIPv6Dst:
						addrs[1] = a
					}
				}
				return nil
			})
		case ctaTupleProto:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch b := ad.Bytes(); ad.Type() {
					case ctaProtoNum:
						if len(b) == 1 {
							t.proto = state.Protocol(b[0])
						}
					case ctaProtoSrcPort, ctaProtoDstPort:
						if len(b) == 2 {
							ports[ad.Type()-ctaProtoSrcPort] = binary.BigEndian.Uint16(b)
						}
					}
				}
				return nil
			})
		}
	}
	t.src, t.dst = netip.AddrPortFrom(addrs[0], ports[0]), netip.AddrPortFrom(addrs[1], ports[1])
	return nil
}

// encode makes the body of a delete request for exactly this entry: its id
// keeps a successor with the same addresses from being hit.
func (e *entry) encode(family uint8) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(ctaTupleOrig, e.tuple.encode)
	if e.id != nil {
		ae.Bytes(ctaID, e.id)
	}
	if e.zone != nil {
		ae.Bytes(ctaZone, e.zone)
	}
	b, err := ae.Encode()
	return append(header(family), b...), err
}
