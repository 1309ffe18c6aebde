package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/dns/wire"
)

const (
	// tcpIdle is how long a connection may be silent (RFC 7766 section 6.2.3: seconds).
	tcpIdle = 10 * time.Second
	// tcpWrite is how long an asker may take to read an answer.
	tcpWrite = 5 * time.Second
)

// tcpListener takes connections.
type tcpListener struct {
	s     *Server
	l     net.Listener
	stats *stats
	open  atomic.Int64
}

func (t *tcpListener) run() {
	for {
		c, err := t.l.Accept()
		if err != nil {
			if t.s.ctx.Err() != nil {
				return
			}
			t.s.log.Warn("accept DNS connection", "addr", t.l.Addr(), "err", err)
			select {
			case <-t.s.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		peer := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if t.open.Load() >= int64(t.s.opts.MaxConns) || !t.s.conns.acquire(peer) {
			c.Close()
			t.stats.limited.Add(1)
			continue
		}
		t.open.Add(1)
		t.s.wg.Go(func() {
			defer t.open.Add(-1)
			defer t.s.conns.release(peer)
			t.serve(c, peer)
		})
	}
}

// serve answers the questions of one connection. Those that take waiting are
// answered when they can be, the others before them (RFC 7766 section 6.2.1.1).
func (t *tcpListener) serve(c net.Conn, peer netip.Addr) {
	defer c.Close()
	// A connection must not outlive the server.
	defer context.AfterFunc(t.s.ctx, func() { c.Close() })()
	defer t.s.guard()
	var pending sync.WaitGroup
	defer pending.Wait()
	var writeMu sync.Mutex
	write := func(msg []byte) error {
		writeMu.Lock()
		defer writeMu.Unlock()
		c.SetWriteDeadline(time.Now().Add(tcpWrite))
		_, err := c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, len(msg)+2), uint16(len(msg))), msg...))
		return err
	}
	in := bufio.NewReaderSize(c, 1024)
	var q wire.Query
	var buf []byte
	for {
		c.SetReadDeadline(time.Now().Add(tcpIdle))
		var size [2]byte
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n > maxQuery {
			return
		}
		msg := make([]byte, n)
		if _, err := io.ReadFull(in, msg); err != nil {
			return
		}
		start := time.Now()
		sn := seen{proto: protoTCP, family: family(peer)}
		reply, target, todo := t.s.look(&q, msg, buf, false, &sn)
		switch {
		case todo == drop:
			return // not a DNS question: nobody to talk to
		case todo != done && t.s.clients.acquire(peer):
			target := slices.Clone(target)
			pending.Go(func() {
				defer t.s.guard()
				defer t.s.clients.release(peer)
				var q wire.Query
				q.Parse(msg)
				reply := t.s.wait(&q, todo, target, false, &sn)
				t.done(&sn, reply, start)
				if write(reply) != nil {
					c.Close()
				}
			})
			continue
		case todo != done:
			t.stats.limited.Add(1)
			reply = t.s.refuse(&q, buf, &sn)
		}
		buf = reply[:0]
		t.done(&sn, reply, start)
		if write(reply) != nil {
			return
		}
	}
}

func (t *tcpListener) done(sn *seen, reply []byte, start time.Time) {
	sn.replyLen = len(reply)
	t.stats.count(sn)
	t.stats.time(sn.zone, time.Since(start), 1)
}
