// Package raw is what the responders of all protocols have in common: a raw
// socket on one link that answers frames, and the table of the addresses that
// are answered for, with counts.
//
// In come frames that a kernel filter lets through, out go answers. It knows
// no protocol and decides nothing.
package raw

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// Config says where a responder works and whom it tells what.
type Config struct {
	// NetNS is the network namespace of the link; nil: this one.
	NetNS *netns.NS
	Link  *net.Interface
	// Port says that the link is a port of a bridge or a bond: what it receives
	// counts as its master's.
	Port bool
	// Conflict is told that another Ethernet address says that an address is
	// its own which this responder answers for. Broken is told once that the
	// socket cannot be read any more: nobody answers from then on. Both are
	// called from the socket's goroutine or another one, must return at once,
	// and may be nil.
	Conflict func(netip.Addr, net.HardwareAddr)
	Broken   func(error)
	// Logger must be set.
	Logger *slog.Logger
}

// Conflicting tells of a conflict.
func (c *Config) Conflicting(a netip.Addr, mac net.HardwareAddr) {
	if c.Conflict != nil {
		c.Conflict(a, append(net.HardwareAddr(nil), mac...))
	}
}

// maxErrors is how many reads may fail in a row; the socket is given up then.
const maxErrors = 10

// conn is a packet.Conn.
type conn interface {
	ReadFrom([]byte) (int, net.Addr, error)
	WriteTo([]byte, net.Addr) (int, error)
	Close() error
}

// Socket receives frames of one Ethernet type on one link and answers them. It
// is safe for concurrent use.
type Socket struct {
	conn   conn
	broken func(error)
	logger *slog.Logger
	closed atomic.Bool
	done   chan struct{}
}

// Listen opens a socket; handle is called for every frame that the filter lets
// through, from one goroutine. It needs CAP_NET_RAW. The last instruction of
// the filter refuses a frame. When the link is gone nothing is received any
// more; Close the socket nevertheless.
func Listen(c Config, ethertype int, filter []bpf.Instruction, handle func(*Socket, []byte)) (*Socket, error) {
	if len(c.Link.HardwareAddr) != 6 {
		return nil, errors.New("the link has no Ethernet address")
	}
	if !c.Port {
		// A socket on a link also sees what comes in for the VLANs upon it, with
		// their tags taken off. That is other networks' business.
		own := []bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(c.Link.Index), SkipFalse: uint8(len(filter) - 1)},
		}
		filter = append(own, filter...)
	}
	code, err := bpf.Assemble(filter)
	if err != nil {
		return nil, fmt.Errorf("filter: %w", err)
	}
	var conn *packet.Conn
	open := func() (err error) {
		conn, err = packet.Listen(c.Link, packet.Raw, ethertype, &packet.Config{Filter: code})
		return err
	}
	if c.NetNS != nil {
		err = c.NetNS.Do(open)
	} else {
		err = open()
	}
	if err != nil {
		return nil, err
	}
	return serve(conn, c, handle), nil
}

func serve(conn conn, c Config, handle func(*Socket, []byte)) *Socket {
	s := &Socket{conn: conn, broken: c.Broken, logger: c.Logger, done: make(chan struct{})}
	go s.serve(handle)
	return s
}

func (s *Socket) serve(handle func(*Socket, []byte)) {
	defer close(s.done)
	buf := make([]byte, 2048)
	failed := 0
	for {
		n, _, err := s.conn.ReadFrom(buf)
		switch {
		case err == nil:
			failed = 0
			handle(s, buf[:n])
		case s.closed.Load(), errors.Is(err, net.ErrClosed): // or EBADF, if it was just about to read
			return
		case errors.Is(err, unix.ENETDOWN):
			// Reported once; the socket works again with the link.
			time.Sleep(time.Millisecond)
		default:
			if failed++; failed < maxErrors {
				s.logger.Debug("raw socket: read, will try again", "err", err)
				time.Sleep(time.Duration(failed) * time.Millisecond)
				continue
			}
			s.logger.Warn("raw socket cannot be read, and is given up", "err", err)
			if s.broken != nil {
				go s.broken(err)
			}
			return
		}
	}
}

// Send sends a frame, an Ethernet header at its front, to whom it is for.
func (s *Socket) Send(frame []byte) error {
	_, err := s.conn.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
	return err
}

// Multicast has the link let frames to a multicast address through (or no
// longer), whatever protocols the kernel speaks on it.
func (s *Socket) Multicast(mac net.HardwareAddr, join bool) error {
	c, ok := s.conn.(*packet.Conn)
	switch {
	case !ok:
		return errors.ErrUnsupported
	case join:
		return c.JoinGroup(mac)
	}
	return c.LeaveGroup(mac)
}

// Close stops answering.
func (s *Socket) Close() error {
	s.closed.Store(true)
	err := s.conn.Close()
	<-s.done
	return err
}
