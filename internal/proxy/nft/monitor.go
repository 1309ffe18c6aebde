package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// monitor listens to what is changed in the namespace's ruleset and tells when
// somebody else changed our table. Notifications carry the netlink port of who
// made the change, so our own are told apart.
type monitor struct {
	log   *slog.Logger
	table string
	drift chan struct{}
	file  *os.File // the socket, in the runtime's poller
	ports sync.Map // netlink ports of our connections, now and before
	done  chan struct{}

	mu sync.Mutex
	// covered is the generation that was read last, and when: what came before
	// is known. Notifications carry 16 bits of theirs.
	covered   uint16
	coveredAt time.Time
	// tampered is set when others have changed the table since; last is the
	// generation of that.
	tampered bool
	last     uint16
}

// lateness is how long after it a change may still be notified.
const lateness = 10 * time.Second

// monitorBuffer is how many bytes of notifications may wait.
const monitorBuffer = 4 << 20

func newMonitor(p *Programmer) (*monitor, error) {
	m := &monitor{log: p.log, table: p.table, drift: make(chan struct{}, 1), done: make(chan struct{})}
	open := func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		m.file = os.NewFile(uintptr(fd), "nftables notifications")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, monitorBuffer); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
	}
	if err := inNS(p.ns, open); err != nil {
		if m.file != nil {
			m.file.Close()
		}
		return nil, fmt.Errorf("nft: listen to ruleset changes: %w", err)
	}
	m.own(p.c.portID)
	go m.run()
	return m, nil
}

func inNS(ns *netns.NS, f func() error) error {
	if ns == nil {
		return f()
	}
	return ns.Do(f)
}

// own takes note of a netlink port as ours. What the current one changes is
// dropped before it is queued, so that a change wakes nobody up.
func (m *monitor) own(port uint32) {
	m.ports.Store(port, true)
	// nlmsg_pid is in host order, and a filter loads in network order.
	k := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, port))
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
	}
	raw, err := m.file.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		m.log.Warn("cannot filter our own ruleset notifications; they are sorted out later, at some cost", "err", err)
	}
}

func (m *monitor) close() {
	m.file.Close()
	<-m.done
}

// signal tells of a drift, unless one is told that nobody has heard yet.
func (m *monitor) signal(why string, args ...any) {
	select {
	case m.drift <- struct{}{}:
		m.log.Warn(why, args...)
	default:
	}
}

// tamper takes note of a change by somebody else.
func (m *monitor) tamper(generation uint16, why string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.covered-generation < 1<<10 && time.Since(m.coveredAt) < lateness {
		return
	}
	m.tampered, m.last = true, generation
	m.signal(why, args...)
}

// cover says that the ruleset of a generation is about to be read, so that
// changes up to there need no more attention. It reports whether there were
// any.
func (m *monitor) cover(generation uint32) (tampered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.covered, m.coveredAt = uint16(generation), time.Now()
	tampered = m.tampered
	if tampered && int16(m.last-m.covered) <= 0 {
		m.tampered = false
		select {
		case <-m.drift:
		default:
		}
	}
	return tampered
}

func (m *monitor) run() {
	defer close(m.done)
	raw, err := m.file.SyscallConn()
	if err != nil {
		m.log.Error("watching the ruleset failed; changes by others will go unnoticed", "err", err)
		return
	}
	buf := make([]byte, recvChunk)
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN && rerr != unix.EINTR
		})
		if err != nil {
			return // closed
		}
		if errors.Is(rerr, unix.ENOBUFS) {
			// Something was lost, perhaps a change to our table.
			m.mu.Lock()
			m.tampered, m.last = true, m.covered+1
			m.signal("lost notifications of ruleset changes; our nftables table needs a check", "table", m.table)
			m.mu.Unlock()
			continue
		}
		if rerr != nil {
			m.log.Error("watching the ruleset failed; changes by others will go unnoticed", "err", rerr)
			return
		}
		m.look(buf[:n])
	}
}

// look reads one datagram of notifications. All in it are of one transaction.
func (m *monitor) look(b []byte) {
	if len(b) < nlmsgHdrLen {
		return
	}
	port := binary.NativeEndian.Uint32(b[12:])
	if _, ours := m.ports.Load(port); ours {
		return
	}
	hit := false
	var generation uint16
	messages(b, func(h unix.NlMsghdr, body []byte) error {
		if hit || h.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(body) < nfgenHdrLen {
			return nil
		}
		// Every kind of object but a generation names its table in attribute 1.
		if h.Type&0xff != unix.NFT_MSG_NEWGEN && body[0] == unix.NFPROTO_INET &&
			attrStr(body[nfgenHdrLen:], unix.NFTA_TABLE_NAME) == m.table {
			hit = true
			generation = binary.BigEndian.Uint16(body[2:]) // nfgenmsg.res_id
		}
		return nil
	})
	if hit {
		m.tamper(generation, "somebody else changed our nftables table", "table", m.table, "netlinkPort", port)
	}
}
