package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// Sizes of the socket's buffers, in bytes. A batch is handed over in one
// sendmsg, which fails with EMSGSIZE if it is larger than the send buffer, so
// that one is as large as the kernel allows; nothing is allocated for it. The
// receive buffer holds the acks of a batch that fails at many places.
const (
	sendBuffer    = 1<<30 - 1
	receiveBuffer = 8 << 20
	recvChunk     = 64 << 10
)

// Attribute types of an extended ack (enum nlmsgerr_attrs).
const (
	nlmsgerrAttrMsg = 1
)

// errInterrupted is returned by dump when the ruleset changed meanwhile: the
// answer is a mixture of two states.
var errInterrupted = errors.New("ruleset changed during the dump")

// conn is a netlink socket that speaks nfnetlink. It is for one goroutine at a
// time. After an error of commit it must be closed: a failing batch can leave
// answers behind that a later one would take for its own.
type conn struct {
	fd     int
	portID uint32
	seq    uint32
	buf    []byte
}

// dial opens a socket in a network namespace; nil is the caller's own.
func dial(ns *netns.NS) (*conn, error) {
	var c *conn
	open := func() (err error) { c, err = dialHere(); return err }
	if ns == nil {
		err := open()
		return c, err
	}
	err := ns.Do(open)
	return c, err
}

func dialHere() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &conn{fd: fd, seq: 1, buf: make([]byte, recvChunk)}
	if err := c.setup(); err != nil {
		c.close()
		return nil, fmt.Errorf("set up netlink socket: %w", err)
	}
	return c, nil
}

func (c *conn) setup() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	c.portID = sa.(*unix.SockaddrNetlink).Pid
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer); err != nil {
		return fmt.Errorf("SO_SNDBUFFORCE (needs CAP_NET_ADMIN): %w", err)
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return fmt.Errorf("SO_RCVBUFFORCE (needs CAP_NET_ADMIN): %w", err)
	}
	// An answer that does not come is a bug; do not hang on it.
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		return err
	}
	// Errors tell what, not just a number; and do not repeat the message they are for.
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, opt, 1); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) close() { unix.Close(c.fd) }

func (c *conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

// receive calls f for every message of the next datagram.
func (c *conn) receive(flags int, f func(h unix.NlMsghdr, body []byte) error) error {
	var n int
	for {
		var err error
		n, _, err = unix.Recvfrom(c.fd, c.buf, flags)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	return messages(c.buf[:n], f)
}

// messages walks the netlink messages in a datagram; body is what follows the
// nlmsghdr.
func messages(b []byte, f func(h unix.NlMsghdr, body []byte) error) error {
	for len(b) >= nlmsgHdrLen {
		h := unix.NlMsghdr{
			Len:   binary.NativeEndian.Uint32(b),
			Type:  binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]),
			Seq:   binary.NativeEndian.Uint32(b[8:]),
			Pid:   binary.NativeEndian.Uint32(b[12:]),
		}
		if h.Len < nlmsgHdrLen || int(h.Len) > len(b) {
			return errors.New("truncated netlink message")
		}
		if err := f(h, b[nlmsgHdrLen:h.Len]); err != nil {
			return err
		}
		n := (int(h.Len) + 3) &^ 3
		if n > len(b) {
			break
		}
		b = b[n:]
	}
	return nil
}

// opError is a message of a batch that the kernel refused.
type opError struct {
	op    string // what the message was to do
	errno syscall.Errno
	hint  string // the kernel's own words, often empty
}

func (e *opError) Error() string {
	if e.hint != "" {
		return fmt.Sprintf("%s: %v (%s)", e.op, e.errno, e.hint)
	}
	if e.errno == unix.ENOENT && strings.HasPrefix(e.op, verbAddRule) {
		return fmt.Sprintf("%s: %v (a set is gone, or the kernel lacks one of nft_ct, nft_fib_inet, nft_masq, nft_nat, nft_numgen, nft_reject_inet)", e.op, e.errno)
	}
	return fmt.Sprintf("%s: %v", e.op, e.errno)
}

func (e *opError) Unwrap() error { return e.errno }

// parseError reads an NLMSG_ERROR body; a nil error is an ack.
func parseError(h unix.NlMsghdr, body []byte) (syscall.Errno, string) {
	if len(body) < 4 {
		return unix.EPROTO, "short error message"
	}
	errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(body)))
	hint := ""
	if h.Flags&unix.NLM_F_ACK_TLVS != 0 && len(body) >= 4+nlmsgHdrLen {
		// NETLINK_CAP_ACK: only the header of the message follows the number.
		hint = attrStr(body[4+nlmsgHdrLen:], nlmsgerrAttrMsg)
	}
	return errno, hint
}

// commit sends a finished batch, whose last message asks for an ack, and waits
// for the kernel's verdict: all of it is programmed, or nothing.
func (c *conn) commit(b *batch) error {
	base := b.finish(c.seq)
	c.seq += uint32(len(b.ops)) + 2
	if err := c.send(b.b); err != nil {
		return fmt.Errorf("send batch of %d bytes: %w", len(b.b), err)
	}
	// The answers are queued by the time sendmsg returns.
	var first error
	last := base + uint32(len(b.ops)) + 1
	for acked := false; !acked && first == nil; {
		err := c.receive(unix.MSG_DONTWAIT, func(h unix.NlMsghdr, body []byte) error {
			if h.Type != unix.NLMSG_ERROR {
				return nil
			}
			errno, hint := parseError(h, body)
			if errno != 0 && first == nil {
				first = &opError{op: b.describe(int(h.Seq) - int(base)), errno: errno, hint: hint}
			}
			acked = acked || h.Seq == last
			return nil
		})
		if err != nil {
			return fmt.Errorf("receive the ack of a batch: %w", err)
		}
	}
	return first
}

// dump asks for all objects of a kind and hands each to f: the body after the
// nfgenmsg. It returns errInterrupted, at the end, if the ruleset changed
// meanwhile.
func (c *conn) dump(msgType uint16, family uint8, fill func(*wire), f func(attrs []byte) error) error {
	c.seq++
	seq := c.seq
	var w wire
	at := w.message(unix.NFNL_SUBSYS_NFTABLES<<8|msgType, unix.NLM_F_DUMP, seq, family, 0)
	if fill != nil {
		fill(&w)
	}
	w.end(at)
	if err := c.send(w.b); err != nil {
		return fmt.Errorf("send dump request: %w", err)
	}
	interrupted := false
	for done := false; !done; {
		err := c.receive(0, func(h unix.NlMsghdr, body []byte) error {
			if h.Seq != seq {
				return nil
			}
			if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = true
			}
			switch h.Type {
			case unix.NLMSG_DONE:
				done = true
				if len(body) >= 4 {
					if errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(body))); errno != 0 {
						return errno
					}
				}
				return nil
			case unix.NLMSG_ERROR:
				errno, hint := parseError(h, body)
				if errno == 0 {
					return nil
				}
				done = true
				return &opError{op: "dump", errno: errno, hint: hint}
			}
			if len(body) < nfgenHdrLen {
				return nil
			}
			return f(body[nfgenHdrLen:])
		})
		if err != nil {
			return err
		}
	}
	if interrupted {
		return errInterrupted
	}
	return nil
}

// generation reads the ruleset's generation number: every transaction of
// anybody in the namespace adds one.
func (c *conn) generation() (uint32, error) {
	c.seq++
	var w wire
	at := w.message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0, c.seq, unix.AF_UNSPEC, 0)
	w.end(at)
	if err := c.send(w.b); err != nil {
		return 0, fmt.Errorf("ask for the generation: %w", err)
	}
	var gen uint32
	err := c.receive(0, func(h unix.NlMsghdr, body []byte) error {
		if h.Type == unix.NLMSG_ERROR {
			errno, hint := parseError(h, body)
			return &opError{op: "read the generation", errno: errno, hint: hint}
		}
		if h.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN && len(body) > nfgenHdrLen {
			gen = attrU32(body[nfgenHdrLen:], unix.NFTA_GEN_ID)
		}
		return nil
	})
	return gen, err
}
