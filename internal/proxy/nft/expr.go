package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Verdicts and constants that golang.org/x/sys/unix does not have, or has
// with an awkward type (include/uapi/linux/netfilter.h and nf_tables.h).
const (
	nfDrop    = 0
	nfAccept  = 1
	nftGoto   = -4 // NFT_GOTO
	nftJump   = -3 // NFT_JUMP
	dynUpdate = 1  // NFT_DYNSET_OP_UPDATE
	dynDelete = 2  // NFT_DYNSET_OP_DELETE

	ctDstIP     = 20 // NFT_CT_DST_IP
	ctDstIP6    = 22 // NFT_CT_DST_IP6
	dirOriginal = 0
	dirReply    = 1

	ctStatusDNAT = 1 << 5 // IPS_DST_NAT
	ctStateNew   = 8      // NF_CT_STATE_BIT(IP_CT_NEW)

	rtnLocal = 2 // RTN_LOCAL
)

// rule is a rule's expressions, encoded; its methods each append one
// expression and return the longer rule. A rule that does not match at one
// expression ends there.
type rule struct {
	exprs []byte
	note  string // comment that nft(8) shows
}

func (r rule) comment(s string) rule { r.note = s; return r }

func (r rule) expr(name string, fill func(w *wire)) rule {
	// Copied, so that rules with a common beginning do not share their ends.
	w := wire{b: append([]byte(nil), r.exprs...)}
	e := w.nest(unix.NFTA_LIST_ELEM)
	w.str(unix.NFTA_EXPR_NAME, name)
	d := w.nest(unix.NFTA_EXPR_DATA)
	fill(&w)
	w.endNest(d)
	w.endNest(e)
	r.exprs = w.b
	return r
}

func (w *wire) value(typ uint16, v []byte) {
	n := w.nest(typ)
	w.bytes(unix.NFTA_DATA_VALUE, v)
	w.endNest(n)
}

func (w *wire) verdict(code int32, chain string) {
	v := w.nest(unix.NFTA_DATA_VERDICT)
	w.u32(unix.NFTA_VERDICT_CODE, uint32(code))
	if chain != "" {
		w.str(unix.NFTA_VERDICT_CHAIN, chain)
	}
	w.endNest(v)
}

// payload loads n bytes of a header into a register.
func (r rule) payload(base, offset, n, dreg uint32) rule {
	return r.expr("payload", func(w *wire) {
		w.u32(unix.NFTA_PAYLOAD_DREG, dreg)
		w.u32(unix.NFTA_PAYLOAD_BASE, base)
		w.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
		w.u32(unix.NFTA_PAYLOAD_LEN, n)
	})
}

// writeAddr writes n bytes of a register into the network header and corrects
// the checksums: the transport's, and the header's own at csum if it has one.
func (r rule) writeAddr(sreg, offset, n uint32, csum int) rule {
	return r.expr("payload", func(w *wire) {
		w.u32(unix.NFTA_PAYLOAD_SREG, sreg)
		w.u32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER)
		w.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
		w.u32(unix.NFTA_PAYLOAD_LEN, n)
		if csum >= 0 {
			w.u32(unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_INET)
			w.u32(unix.NFTA_PAYLOAD_CSUM_OFFSET, uint32(csum))
		} else {
			w.u32(unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_NONE)
			w.u32(unix.NFTA_PAYLOAD_CSUM_OFFSET, 0)
		}
		w.u32(unix.NFTA_PAYLOAD_CSUM_FLAGS, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR)
	})
}

func (r rule) meta(key, dreg uint32) rule {
	return r.expr("meta", func(w *wire) {
		w.u32(unix.NFTA_META_DREG, dreg)
		w.u32(unix.NFTA_META_KEY, key)
	})
}

// ct loads a property of the packet's connection; direction -1 is none.
func (r rule) ct(key, dreg uint32, direction int) rule {
	return r.expr("ct", func(w *wire) {
		w.u32(unix.NFTA_CT_DREG, dreg)
		w.u32(unix.NFTA_CT_KEY, key)
		if direction >= 0 {
			w.bytes(unix.NFTA_CT_DIRECTION, []byte{byte(direction)})
		}
	})
}

// immediate loads a constant of at most 16 bytes.
func (r rule) immediate(dreg uint32, v []byte) rule {
	return r.expr("immediate", func(w *wire) {
		w.u32(unix.NFTA_IMMEDIATE_DREG, dreg)
		w.value(unix.NFTA_IMMEDIATE_DATA, v)
	})
}

func (r rule) cmp(op, sreg uint32, v []byte) rule {
	return r.expr("cmp", func(w *wire) {
		w.u32(unix.NFTA_CMP_SREG, sreg)
		w.u32(unix.NFTA_CMP_OP, op)
		w.value(unix.NFTA_CMP_DATA, v)
	})
}

func (r rule) equal(sreg uint32, v ...byte) rule    { return r.cmp(unix.NFT_CMP_EQ, sreg, v) }
func (r rule) notEqual(sreg uint32, v ...byte) rule { return r.cmp(unix.NFT_CMP_NEQ, sreg, v) }

// and masks a register in place.
func (r rule) and(reg uint32, mask ...byte) rule {
	return r.expr("bitwise", func(w *wire) {
		w.u32(unix.NFTA_BITWISE_SREG, reg)
		w.u32(unix.NFTA_BITWISE_DREG, reg)
		w.u32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		w.value(unix.NFTA_BITWISE_MASK, mask)
		w.value(unix.NFTA_BITWISE_XOR, make([]byte, len(mask)))
	})
}

// lookup goes on if the key at sreg is in the set.
func (r rule) lookup(sreg uint32, set string) rule {
	return r.expr("lookup", func(w *wire) {
		w.str(unix.NFTA_LOOKUP_SET, set)
		w.u32(unix.NFTA_LOOKUP_SREG, sreg)
	})
}

// absent goes on if the key at sreg is not in the set.
func (r rule) absent(sreg uint32, set string) rule {
	return r.expr("lookup", func(w *wire) {
		w.str(unix.NFTA_LOOKUP_SET, set)
		w.u32(unix.NFTA_LOOKUP_SREG, sreg)
		w.u32(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
	})
}

// find loads the data the map has for the key at sreg; dreg 0 is the verdict.
func (r rule) find(sreg uint32, set string, dreg uint32) rule {
	return r.expr("lookup", func(w *wire) {
		w.str(unix.NFTA_LOOKUP_SET, set)
		w.u32(unix.NFTA_LOOKUP_SREG, sreg)
		w.u32(unix.NFTA_LOOKUP_DREG, dreg)
	})
}

// dynset changes a set from the packet path. sdata 0 is none; a timeout of 0
// leaves it to the set.
func (r rule) dynset(op, skey, sdata uint32, set string, timeoutMS uint64) rule {
	return r.expr("dynset", func(w *wire) {
		w.str(unix.NFTA_DYNSET_SET_NAME, set)
		w.u32(unix.NFTA_DYNSET_OP, op)
		w.u32(unix.NFTA_DYNSET_SREG_KEY, skey)
		if sdata != 0 {
			w.u32(unix.NFTA_DYNSET_SREG_DATA, sdata)
		}
		if timeoutMS != 0 {
			w.u64(unix.NFTA_DYNSET_TIMEOUT, timeoutMS)
		}
	})
}

// random loads a random number from offset to offset+modulus-1.
func (r rule) random(dreg, modulus, offset uint32) rule {
	return r.expr("numgen", func(w *wire) {
		w.u32(unix.NFTA_NG_DREG, dreg)
		w.u32(unix.NFTA_NG_MODULUS, modulus)
		w.u32(unix.NFTA_NG_TYPE, unix.NFT_NG_RANDOM)
		w.u32(unix.NFTA_NG_OFFSET, offset)
	})
}

// dnat sends the connection to the address and port in the registers.
func (r rule) dnat(nfproto uint8, addr, port uint32) rule {
	return r.expr("nat", func(w *wire) {
		w.u32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
		w.u32(unix.NFTA_NAT_FAMILY, uint32(nfproto))
		w.u32(unix.NFTA_NAT_REG_ADDR_MIN, addr)
		w.u32(unix.NFTA_NAT_REG_PROTO_MIN, port)
		w.u32(unix.NFTA_NAT_FLAGS, natProtoSpecified)
	})
}

const (
	natProtoSpecified = 1 << 1 // NF_NAT_RANGE_PROTO_SPECIFIED
	natRandomFully    = 1 << 4 // NF_NAT_RANGE_PROTO_RANDOM_FULLY
)

// masquerade gives the connection the address of the link it leaves by.
func (r rule) masquerade() rule {
	return r.expr("masq", func(w *wire) { w.u32(unix.NFTA_MASQ_FLAGS, natRandomFully) })
}

// addrType loads the type of the packet's address (RTN_LOCAL, …) as this node
// sees it.
func (r rule) addrType(flag, dreg uint32) rule {
	return r.expr("fib", func(w *wire) {
		w.u32(unix.NFTA_FIB_DREG, dreg)
		w.u32(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE)
		w.u32(unix.NFTA_FIB_FLAGS, flag)
	})
}

func (r rule) reject(typ uint32, code uint8) rule {
	return r.expr("reject", func(w *wire) {
		w.u32(unix.NFTA_REJECT_TYPE, typ)
		w.bytes(unix.NFTA_REJECT_ICMP_CODE, []byte{code})
	})
}

func (r rule) verdict(code int32, chain string) rule {
	return r.expr("immediate", func(w *wire) {
		w.u32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		d := w.nest(unix.NFTA_IMMEDIATE_DATA)
		w.verdict(code, chain)
		w.endNest(d)
	})
}

func (r rule) gotoChain(chain string) rule { return r.verdict(nftGoto, chain) }
func (r rule) drop() rule                  { return r.verdict(nfDrop, "") }
func (r rule) accept() rule                { return r.verdict(nfAccept, "") }

// host32 is a number as registers and keys of type mark hold it.
func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
