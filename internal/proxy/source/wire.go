package source

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Protobuf wire types, https://protobuf.dev/programming-guides/encoding/.
const (
	wireVarint = 0
	wireI64    = 1
	wireBytes  = 2
	wireI32    = 5
)

var errWire = errors.New("malformed protobuf")

// field is one field of a protobuf message. data points into the message.
type field struct {
	num    int
	varint uint64
	data   []byte
}

// walker walks over the fields of a message:
//
//	for m := fields(b); m.next(); { switch m.num {…} }
//
// Once next has returned false err tells whether the message was well formed.
type walker struct {
	field
	rest []byte
	err  error
}

func fields(b []byte) walker { return walker{rest: b} }

func (w *walker) next() bool {
	if len(w.rest) == 0 || w.err != nil {
		return false
	}
	tag, n := binary.Uvarint(w.rest)
	if n <= 0 || tag>>3 == 0 || tag>>3 > 1<<29-1 {
		return w.fail()
	}
	w.rest = w.rest[n:]
	w.num, w.varint, w.data = int(tag>>3), 0, nil
	switch tag & 7 {
	case wireVarint:
		v, n := binary.Uvarint(w.rest)
		if n <= 0 {
			return w.fail()
		}
		w.varint, w.rest = v, w.rest[n:]
	case wireBytes:
		l, n := binary.Uvarint(w.rest)
		if n <= 0 || l > uint64(len(w.rest)-n) {
			return w.fail()
		}
		w.data, w.rest = w.rest[n:n+int(l)], w.rest[n+int(l):]
	case wireI64, wireI32:
		size := 8
		if tag&7 == wireI32 {
			size = 4
		}
		if len(w.rest) < size {
			return w.fail()
		}
		w.rest = w.rest[size:]
	default:
		return w.fail()
	}
	return true
}

func (w *walker) fail() bool {
	w.err, w.rest = errWire, nil
	return false
}

// magic starts every object in Kubernetes' protobuf encoding;
// a runtime.Unknown message follows.
var magic = [4]byte{'k', '8', 's', 0}

// envelope opens a runtime.Unknown: the object's kind and its encoding.
func envelope(b []byte) (kind, raw []byte, err error) {
	if len(b) < 4 || [4]byte(b[:4]) != magic {
		return nil, nil, fmt.Errorf("object does not start with the protobuf magic %q", magic)
	}
	w := fields(b[4:])
	for w.next() {
		switch w.num {
		case 1: // typeMeta
			t := fields(w.data)
			for t.next() {
				if t.num == 2 {
					kind = t.data
				}
			}
			if t.err != nil {
				return nil, nil, t.err
			}
		case 2:
			raw = w.data
		}
	}
	return kind, raw, w.err
}
