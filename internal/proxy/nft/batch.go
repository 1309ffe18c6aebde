package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// maxElements is how many elements one message carries: its list is one
	// attribute, whose length has 16 bits.
	maxElements = 1400
	// maxListBytes closes a message before its element list reaches that.
	maxListBytes = 60 << 10
)

// batch is one transaction: netlink messages that the kernel commits together
// or not at all. Only its end asks for an ack, so that a batch of any size is
// answered by one message.
type batch struct {
	wire
	table  string
	ops    []op // what each message does, for errors
	closed bool // the end is written
	total  int  // elements in the batch
}

// op says what a message of a batch does.
type op struct {
	verb string
	name string
}

const verbAddRule = "add a rule to chain"

// newBatch starts a transaction on a table.
func newBatch(table string) *batch {
	b := &batch{table: table}
	b.reset()
	return b
}

// reset empties the batch and keeps its memory.
func (b *batch) reset() {
	b.b, b.ops, b.total, b.closed = b.b[:0], b.ops[:0], 0, false
	at := b.message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end(at)
}

// empty reports whether the batch would change nothing.
func (b *batch) empty() bool { return len(b.ops) == 0 }

// finish closes the batch and numbers its messages from base on: the beginning
// is base, operation i is base+1+i, the end follows. It returns base.
func (b *batch) finish(base uint32) uint32 {
	if !b.closed {
		at := b.message(unix.NFNL_MSG_BATCH_END, unix.NLM_F_ACK, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
		b.end(at)
		b.closed = true
	}
	seq := base
	for rest := b.b; len(rest) >= nlmsgHdrLen; seq++ {
		binary.NativeEndian.PutUint32(rest[8:], seq)
		rest = rest[binary.NativeEndian.Uint32(rest):]
	}
	return base
}

// describe names the message at a distance from the beginning.
func (b *batch) describe(i int) string {
	switch {
	case i >= 1 && i <= len(b.ops):
		o := b.ops[i-1]
		return fmt.Sprintf("%s %s in table %s", o.verb, o.name, b.table)
	case i == len(b.ops)+1:
		return fmt.Sprintf("commit to table %s", b.table)
	}
	return fmt.Sprintf("transaction on table %s", b.table)
}

// add writes one message that is not about elements.
func (b *batch) add(msgType, flags uint16, verb, name string, fill func(w *wire)) {
	at := b.message(unix.NFNL_SUBSYS_NFTABLES<<8|msgType, flags, 0, unix.NFPROTO_INET, 0)
	fill(&b.wire)
	b.end(at)
	b.ops = append(b.ops, op{verb, name})
}

func (b *batch) newTable() {
	b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "make", "the table", func(w *wire) {
		w.str(unix.NFTA_TABLE_NAME, b.table)
		w.u32(unix.NFTA_TABLE_FLAGS, 0)
	})
}

func (b *batch) deleteTable() {
	b.add(unix.NFT_MSG_DELTABLE, 0, "delete", "the table", func(w *wire) {
		w.str(unix.NFTA_TABLE_NAME, b.table)
	})
}

func (b *batch) newChain(c chainSpec) {
	b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, "make chain", c.name, func(w *wire) {
		w.str(unix.NFTA_CHAIN_TABLE, b.table)
		w.str(unix.NFTA_CHAIN_NAME, c.name)
		if c.kind == "" {
			return
		}
		h := w.nest(unix.NFTA_CHAIN_HOOK)
		w.u32(unix.NFTA_HOOK_HOOKNUM, c.hook)
		w.u32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		w.endNest(h)
		w.u32(unix.NFTA_CHAIN_POLICY, nfAccept)
		w.str(unix.NFTA_CHAIN_TYPE, c.kind)
	})
}

func (b *batch) deleteChain(name string) {
	b.add(unix.NFT_MSG_DELCHAIN, 0, "delete chain", name, func(w *wire) {
		w.str(unix.NFTA_CHAIN_TABLE, b.table)
		w.str(unix.NFTA_CHAIN_NAME, name)
	})
}

// flushRules deletes the rules of a chain, or of all chains if it is "".
func (b *batch) flushRules(chain string) {
	b.add(unix.NFT_MSG_DELRULE, 0, "delete the rules of", chain, func(w *wire) {
		w.str(unix.NFTA_RULE_TABLE, b.table)
		if chain != "" {
			w.str(unix.NFTA_RULE_CHAIN, chain)
		}
	})
}

func (b *batch) newRule(chain string, r rule) {
	b.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, verbAddRule, chain, func(w *wire) {
		w.str(unix.NFTA_RULE_TABLE, b.table)
		w.str(unix.NFTA_RULE_CHAIN, chain)
		l := w.nest(unix.NFTA_RULE_EXPRESSIONS)
		w.b = append(w.b, r.exprs...)
		w.endNest(l)
		if r.note != "" {
			w.bytes(unix.NFTA_RULE_USERDATA, comment(r.note))
		}
	})
}

// comment is a rule comment as nft(8) writes it: a TLV of type 0 in the user data.
func comment(s string) []byte {
	return append(append([]byte{0, byte(len(s) + 1)}, s...), 0)
}

func (b *batch) newSet(s setSpec) {
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, "make set", s.name, func(w *wire) {
		w.str(unix.NFTA_SET_TABLE, b.table)
		w.str(unix.NFTA_SET_NAME, s.name)
		w.u32(unix.NFTA_SET_FLAGS, s.flags)
		w.u32(unix.NFTA_SET_KEY_TYPE, s.keyType)
		w.u32(unix.NFTA_SET_KEY_LEN, s.keyLen)
		if s.flags&unix.NFT_SET_MAP != 0 {
			w.u32(unix.NFTA_SET_DATA_TYPE, s.dataType)
			w.u32(unix.NFTA_SET_DATA_LEN, s.dataLen)
		}
		if s.size != 0 {
			d := w.nest(unix.NFTA_SET_DESC)
			w.u32(unix.NFTA_SET_DESC_SIZE, s.size)
			w.endNest(d)
		}
		if s.order != 0 {
			// A TLV of type 0, as nft(8) keeps it in the user data.
			w.bytes(unix.NFTA_SET_USERDATA, append([]byte{0, 4}, host32(s.order)...))
		}
		w.u32(unix.NFTA_SET_ID, uint32(len(b.ops)+1))
	})
}

func (b *batch) deleteSet(name string) {
	b.add(unix.NFT_MSG_DELSET, 0, "delete set", name, func(w *wire) {
		w.str(unix.NFTA_SET_TABLE, b.table)
		w.str(unix.NFTA_SET_NAME, name)
	})
}

// flushSet deletes all elements of a set.
func (b *batch) flushSet(name string) {
	b.add(unix.NFT_MSG_DELSETELEM, 0, "flush set", name, func(w *wire) {
		w.str(unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
		w.str(unix.NFTA_SET_ELEM_LIST_SET, name)
	})
}

// elems adds already encoded elements (see appendElem), n of them, to a set, or
// deletes them from it. Messages are cut where they become too large.
func (b *batch) elems(del bool, set string, enc []byte, n int) {
	for n > 0 {
		msg, flags, verb := uint16(unix.NFT_MSG_NEWSETELEM), uint16(unix.NLM_F_CREATE), "add elements to"
		if del {
			msg, flags, verb = unix.NFT_MSG_DELSETELEM, 0, "delete elements from"
		}
		at := b.message(unix.NFNL_SUBSYS_NFTABLES<<8|msg, flags, 0, unix.NFPROTO_INET, 0)
		b.str(unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
		b.str(unix.NFTA_SET_ELEM_LIST_SET, set)
		list := b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		size, count := 0, 0
		for rest := enc; count < n && count < maxElements; count++ {
			l := (int(binary.NativeEndian.Uint16(rest)) + 3) &^ 3
			if size+l > maxListBytes {
				break
			}
			size += l
			rest = rest[l:]
		}
		b.b = append(b.b, enc[:size]...)
		b.endNest(list)
		b.end(at)
		b.ops = append(b.ops, op{verb, set})
		enc, n = enc[size:], n-count
		b.total += count
	}
}

// elemFlagEnd is NFT_SET_ELEM_INTERVAL_END: the element ends an interval.
const elemFlagEnd = unix.NFT_SET_ELEM_INTERVAL_END

// appendElem encodes a set element. data nil is an element without data.
func appendElem(b, key, data []byte, flags uint32) []byte {
	at := len(b)
	b = appendAttrHeader(b, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, 0)
	b = appendAttrHeader(b, unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, nlaHdrLen+len(key))
	b = appendAttr(b, unix.NFTA_DATA_VALUE, key)
	if data != nil {
		b = appendAttrHeader(b, unix.NFTA_SET_ELEM_DATA|unix.NLA_F_NESTED, nlaHdrLen+len(data))
		b = appendAttr(b, unix.NFTA_DATA_VALUE, data)
	}
	if flags != 0 {
		b = appendAttrHeader(b, unix.NFTA_SET_ELEM_FLAGS, 4)
		b = binary.BigEndian.AppendUint32(b, flags)
	}
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	return b
}

// appendGoto encodes a verdict map's element: key goes to chain.
func appendGoto(b, key []byte, chain string) []byte {
	var w wire
	e := w.nest(unix.NFTA_LIST_ELEM)
	k := w.nest(unix.NFTA_SET_ELEM_KEY)
	w.bytes(unix.NFTA_DATA_VALUE, key)
	w.endNest(k)
	d := w.nest(unix.NFTA_SET_ELEM_DATA)
	w.verdict(nftGoto, chain)
	w.endNest(d)
	w.endNest(e)
	return append(b, w.b...)
}
