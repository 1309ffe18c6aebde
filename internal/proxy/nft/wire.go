package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Netlink attributes and headers are in host byte order, the values nf_tables
// keeps in attributes in network byte order. See netlink(7) and
// include/uapi/linux/netfilter/nf_tables.h.

const (
	nlmsgHdrLen = 16 // struct nlmsghdr
	nfgenHdrLen = 4  // struct nfgenmsg
	nlaHdrLen   = 4  // struct nlattr
)

// wire builds netlink messages one after the other in one buffer.
type wire struct{ b []byte }

// message opens a message and returns its place for end.
func (w *wire) message(typ, flags uint16, seq uint32, family uint8, resID uint16) int {
	at := len(w.b)
	w.b = append(w.b, make([]byte, nlmsgHdrLen+nfgenHdrLen)...)
	h := w.b[at:]
	binary.NativeEndian.PutUint16(h[4:], typ)
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(h[8:], seq)
	h[16] = family
	h[17] = unix.NFNETLINK_V0
	binary.BigEndian.PutUint16(h[18:], resID)
	return at
}

// end closes the message opened at a place.
func (w *wire) end(at int) {
	binary.NativeEndian.PutUint32(w.b[at:], uint32(len(w.b)-at))
}

// bytes adds an attribute, padded to four bytes.
func (w *wire) bytes(typ uint16, v []byte) {
	w.b = appendAttr(w.b, typ, v)
}

func (w *wire) str(typ uint16, v string) {
	w.b = appendAttrHeader(w.b, typ, len(v)+1)
	w.b = append(w.b, v...)
	w.b = append(w.b, 0)
	w.b = pad4(w.b)
}

func (w *wire) u32(typ uint16, v uint32) {
	w.b = appendAttrHeader(w.b, typ, 4)
	w.b = binary.BigEndian.AppendUint32(w.b, v)
}

func (w *wire) u64(typ uint16, v uint64) {
	w.b = appendAttrHeader(w.b, typ, 8)
	w.b = binary.BigEndian.AppendUint64(w.b, v)
}

// nest opens a nested attribute and returns its place for endNest.
func (w *wire) nest(typ uint16) int {
	at := len(w.b)
	w.b = appendAttrHeader(w.b, typ|unix.NLA_F_NESTED, 0)
	return at
}

// endNest closes a nested attribute. It must not have grown over 65,535 bytes,
// what an attribute's length field can hold.
func (w *wire) endNest(at int) {
	n := len(w.b) - at
	if n > 1<<16-1 {
		panic("nft: netlink attribute over 65,535 bytes")
	}
	binary.NativeEndian.PutUint16(w.b[at:], uint16(n))
}

func appendAttrHeader(b []byte, typ uint16, n int) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(n+nlaHdrLen))
	return binary.NativeEndian.AppendUint16(b, typ)
}

func appendAttr(b []byte, typ uint16, v []byte) []byte {
	b = appendAttrHeader(b, typ, len(v))
	b = append(b, v...)
	return pad4(b)
}

func pad4(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// attrs calls f for each attribute in b; nesting flags are taken off the type.
// A malformed tail ends the walk.
func attrs(b []byte, f func(typ uint16, v []byte)) {
	for len(b) >= nlaHdrLen {
		n := int(binary.NativeEndian.Uint16(b))
		if n < nlaHdrLen || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[nlaHdrLen:n])
		n = (n + 3) &^ 3
		if n > len(b) {
			return
		}
		b = b[n:]
	}
}

// attr returns the value of the first attribute of a type, nil if there is none.
func attr(b []byte, typ uint16) (found []byte) {
	attrs(b, func(t uint16, v []byte) {
		if t == typ && found == nil {
			found = v
		}
	})
	return found
}

// attrStr is attr for a string, without its terminating zero.
func attrStr(b []byte, typ uint16) string {
	v := attr(b, typ)
	if n := len(v); n > 0 && v[n-1] == 0 {
		v = v[:n-1]
	}
	return string(v)
}

// attrU32 is attr for a number, zero if there is none.
func attrU32(b []byte, typ uint16) uint32 {
	if v := attr(b, typ); len(v) >= 4 {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}
