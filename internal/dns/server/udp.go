package server

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dns/wire"
)

// udpSocket is one of the sockets of an address.
type udpSocket struct {
	s     *Server
	conn  *net.UDPConn
	raw   syscall.RawConn
	stats *stats
	// control is true on the unspecified address, where each datagram says
	// which address it was sent to.
	control bool
}

func (s *Server) newUDP(c *net.UDPConn) (*udpSocket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	any := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().IsUnspecified()
	return &udpSocket{s: s, conn: c, raw: raw, stats: s.newStats(), control: any}, nil
}

// run answers what comes in until the socket is closed.
func (u *udpSocket) run() {
	var b *batch
	var n int
	var failed error
	receive := func(fd uintptr) bool {
		b = u.s.pool.get()
		n, failed = b.receive(fd, u.control)
		if errors.Is(failed, unix.EAGAIN) {
			u.s.pool.put(b)
			return false
		}
		return true
	}
	var q wire.Query
	for {
		if err := u.raw.Read(receive); err != nil {
			return // closed
		}
		if failed != nil {
			u.s.pool.put(b)
			u.s.log.Warn("receive DNS questions", "addr", u.conn.LocalAddr(), "err", failed)
			select { // what it was may pass
			case <-u.s.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		u.answer(b, n, &q)
		u.s.pool.put(b)
		if n == batchLen {
			// There is more; but first whoever else is waiting.
			runtime.Gosched()
		}
	}
}

// answer deals with n datagrams.
func (u *udpSocket) answer(b *batch, n int, q *wire.Query) {
	defer u.s.guard()
	start := time.Now()
	var counts [zones]int
	for i := range n {
		peer := b.peer(i)
		sn := seen{proto: protoUDP, family: family(peer)}
		reply, target, todo := u.s.look(q, b.query(i), b.replies[i], true, &sn)
		if todo == drop {
			continue
		}
		if todo != done {
			if u.s.clients.acquire(peer) {
				u.later(b, i, peer, slices.Clone(target), todo, sn)
				continue
			}
			u.stats.limited.Add(1)
			reply = u.s.refuse(q, b.replies[i], &sn)
		}
		b.reply(i, reply)
		sn.replyLen = len(reply)
		u.stats.count(&sn)
		counts[sn.zone]++
	}
	if b.sending > 0 {
		_ = b.send(u.raw) // only ever fails because the socket is closed, which ends the loop
	}
	if n > 0 {
		each := time.Since(start) / time.Duration(n)
		for z, c := range counts {
			u.stats.time(z, each, c)
		}
	}
}

// later answers a datagram that takes waiting, beside the others.
func (u *udpSocket) later(b *batch, i int, peer netip.Addr, target []byte, todo step, sn seen) {
	start := time.Now()
	info := b.peerInfo(i)
	msg := slices.Clone(b.query(i))
	u.s.wg.Go(func() {
		defer u.s.guard()
		defer u.s.clients.release(peer)
		var q wire.Query
		q.Parse(msg)
		reply := u.s.wait(&q, todo, target, true, &sn)
		sn.replyLen = len(reply)
		u.stats.count(&sn)
		u.stats.time(sn.zone, time.Since(start), 1)
		if err := info.send(u.raw, reply); err != nil {
			u.s.log.Debug("send DNS answer", "to", peer, "err", err)
		}
	})
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
