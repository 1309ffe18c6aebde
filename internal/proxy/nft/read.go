package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// found is what a table consists of, without the elements of its sets.
type found struct {
	table  bool
	sets   map[string]setSpec
	chains map[string]chainSpec
}

// dumpTries is how often a dump is begun anew because somebody in the
// namespace, perhaps with a table of their own, changed something meanwhile.
const dumpTries = 50

// stableDump is conn.dump, again until nobody interfered. start is called
// before each attempt.
func (p *Programmer) stableDump(msgType uint16, fill func(*wire), start func(), f func(attrs []byte) error) error {
	var err error
	for try := range dumpTries {
		start()
		err = p.c.dump(msgType, unix.NFPROTO_INET, fill, f)
		if !errors.Is(err, errInterrupted) {
			return err
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
	return err
}

// nftaSetCount is NFTA_SET_COUNT, which kernels before 6.16 do not have.
const nftaSetCount = 20

// read finds the table's sets and chains.
func (p *Programmer) read() (*found, error) {
	var is found
	err := p.stableDump(unix.NFT_MSG_GETTABLE, nil, func() { is = found{} }, func(b []byte) error {
		if attrStr(b, unix.NFTA_TABLE_NAME) == p.table {
			is.table = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	if !is.table {
		return &is, nil
	}
	err = p.stableDump(unix.NFT_MSG_GETSET, func(w *wire) { w.str(unix.NFTA_SET_TABLE, p.table) },
		func() { is.sets = map[string]setSpec{} }, func(b []byte) error {
			if attrStr(b, unix.NFTA_SET_TABLE) != p.table {
				return nil
			}
			s := setSpec{
				name:     attrStr(b, unix.NFTA_SET_NAME),
				flags:    attrU32(b, unix.NFTA_SET_FLAGS),
				keyType:  attrU32(b, unix.NFTA_SET_KEY_TYPE),
				keyLen:   attrU32(b, unix.NFTA_SET_KEY_LEN),
				dataType: attrU32(b, unix.NFTA_SET_DATA_TYPE),
				dataLen:  attrU32(b, unix.NFTA_SET_DATA_LEN),
			}
			s.count = -1
			if c := attr(b, nftaSetCount); len(c) == 4 {
				s.count = int(binary.BigEndian.Uint32(c))
			}
			if s.dataType == typeVerdict {
				s.dataLen = 0 // the size of a verdict, which nobody asks for
			}
			if d := attr(b, unix.NFTA_SET_DESC); d != nil {
				s.size = attrU32(d, unix.NFTA_SET_DESC_SIZE)
			}
			is.sets[s.name] = s
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("list the sets of table %s: %w", p.table, err)
	}
	err = p.stableDump(unix.NFT_MSG_GETCHAIN, nil, func() { is.chains = map[string]chainSpec{} }, func(b []byte) error {
		if attrStr(b, unix.NFTA_CHAIN_TABLE) != p.table {
			return nil
		}
		c := chainSpec{name: attrStr(b, unix.NFTA_CHAIN_NAME)}
		if h := attr(b, unix.NFTA_CHAIN_HOOK); h != nil {
			c.kind = attrStr(b, unix.NFTA_CHAIN_TYPE)
			c.hook = attrU32(h, unix.NFTA_HOOK_HOOKNUM)
			c.priority = int32(attrU32(h, unix.NFTA_HOOK_PRIORITY))
			if attrU32(b, unix.NFTA_CHAIN_POLICY) != nfAccept {
				c.kind += " with another policy"
			}
		}
		is.chains[c.name] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the chains of table %s: %w", p.table, err)
	}
	return &is, nil
}

// element is one element of a set as the kernel tells it.
type element struct {
	key, data []byte
	verdict   string // the chain a verdict leads to
	flags     uint32
}

// elements hands all elements of a set to f. What f gets is only valid until
// it returns.
func (p *Programmer) elements(set string, start func(), f func(e element) error) error {
	err := p.stableDump(unix.NFT_MSG_GETSETELEM, func(w *wire) {
		w.str(unix.NFTA_SET_ELEM_LIST_TABLE, p.table)
		w.str(unix.NFTA_SET_ELEM_LIST_SET, set)
	}, start, func(b []byte) (err error) {
		attrs(attr(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS), func(_ uint16, v []byte) {
			var e element
			attrs(v, func(t uint16, v []byte) {
				switch t {
				case unix.NFTA_SET_ELEM_KEY:
					e.key = attr(v, unix.NFTA_DATA_VALUE)
				case unix.NFTA_SET_ELEM_DATA:
					e.data = attr(v, unix.NFTA_DATA_VALUE)
					if d := attr(v, unix.NFTA_DATA_VERDICT); d != nil {
						e.verdict = attrStr(d, unix.NFTA_VERDICT_CHAIN)
					}
				case unix.NFTA_SET_ELEM_FLAGS:
					e.flags = binary.BigEndian.Uint32(v)
				}
			})
			if err == nil {
				err = f(e)
			}
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("list set %s of table %s: %w", set, p.table, err)
	}
	return nil
}

// fits reports whether a set found in the kernel can serve as want: made the
// same and at least as roomy.
func (want setSpec) fits(is setSpec) bool {
	size := is.size
	is.size, is.order, is.count = want.size, want.order, want.count
	return is == want && (want.size == 0) == (size == 0) && size >= want.size
}

// adoptable finds the oldest complete generation of a family that has room for
// need elements, and the next free serial. If a predecessor died while it
// filled a new generation, the older one is what the rules use.
func (p *Programmer) adoptable(f *family, is *found, need [kinds]int) (g *generation, next int) {
	serials := map[int]bool{}
	for name := range is.sets {
		for k := range kinds {
			base := p.name(kindNames[k], f)
			if name == base {
				serials[0] = true
			} else if s, ok := strings.CutPrefix(name, base+"-g"); ok {
				if n, err := strconv.Atoi(s); err == nil && n > 0 {
					serials[n] = true
				}
			}
		}
	}
	best := -1
	for serial := range serials {
		next = max(next, serial+1)
		if best >= 0 && best < serial {
			continue
		}
		c := p.newGeneration(f, serial, [kinds]int{})
		ok := true
		for k := range kinds {
			have, there := is.sets[c.sets[k].name]
			want := c.sets[k]
			if want.size != 0 {
				want.size = uint32(need[k])
				if want.size == 0 {
					want.size = 1
				}
			}
			ok = ok && there && want.fits(have)
			c.sets[k] = have
		}
		if ok {
			best, g = serial, c
		}
	}
	return g, next
}
