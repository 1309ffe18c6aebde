package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"

	"fairway.dev/fairway/internal/netns"
)

// load is the outcome of one measurement. Times are in microseconds.
type load struct{ qps, cpu, p50, p99, lost float64 }

// askers is how many sockets ask, each from an address of its own, as Pods do.
const askers = 8

// asker has a socket, questions, and what it saw.
type asker struct {
	conn      *net.UDPConn
	pc        *ipv4.PacketConn
	questions [][]byte
	took      []uint32 // microseconds
	lost      int
}

func newAskers(ns *netns.NS, server string, questions []*dns.Msg) ([]*asker, error) {
	var raw [][]byte
	for _, m := range questions {
		b, err := m.Pack()
		if err != nil {
			return nil, err
		}
		raw = append(raw, b)
	}
	to, err := net.ResolveUDPAddr("udp", server)
	if err != nil {
		return nil, err
	}
	var out []*asker
	for i := range askers {
		a := &asker{}
		err := ns.Do(func() (err error) {
			a.conn, err = net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}, to)
			return err
		})
		if err != nil {
			return nil, err
		}
		a.conn.SetReadBuffer(4 << 20)
		a.pc = ipv4.NewPacketConn(a.conn)
		// Each begins somewhere else; all have bytes of their own, for the identifiers.
		for j := range raw {
			a.questions = append(a.questions, slices.Clone(raw[(j+i*len(raw)/askers)%len(raw)]))
		}
		out = append(out, a)
	}
	return out, nil
}

// closed keeps window questions under way: as fast as the server goes.
func closed(ns *netns.NS, server string, questions []*dns.Msg, window int, d time.Duration, p *process) (load, error) {
	return measure(ns, server, questions, d, p, func(a *asker, end time.Time) error { return a.closed(window/askers, end) })
}

// open asks at an even rate, whatever the server does.
func open(ns *netns.NS, server string, questions []*dns.Msg, rate int, d time.Duration, p *process) (load, error) {
	return measure(ns, server, questions, d, p, func(a *asker, end time.Time) error { return a.open(rate/askers, end) })
}

func measure(ns *netns.NS, server string, questions []*dns.Msg, d time.Duration, p *process, f func(*asker, time.Time) error) (load, error) {
	all, err := newAskers(ns, server, questions)
	if err != nil {
		return load{}, err
	}
	cpu, begin := p.cpu(), time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	for i, a := range all {
		defer a.conn.Close()
		wg.Go(func() { errs[i] = f(a, begin.Add(d)) })
	}
	wg.Wait()
	elapsed := time.Since(begin)
	used := p.cpu() - cpu
	var took []uint32
	var l load
	for _, a := range all {
		took = append(took, a.took...)
		l.lost += float64(a.lost)
	}
	if err := errors.Join(errs...); err != nil {
		return load{}, err
	}
	if len(took) == 0 {
		return load{}, fmt.Errorf("%s answers nothing", server)
	}
	slices.Sort(took)
	l.qps = float64(len(took)) / elapsed.Seconds()
	l.cpu = float64(used.Microseconds()) / float64(len(took))
	l.p50, l.p99 = float64(took[len(took)/2]), float64(took[len(took)*99/100])
	return l, nil
}

func (a *asker) closed(window int, end time.Time) error {
	sent := make([]time.Time, window)
	generation := make([]uint16, window)
	out := make([]ipv4.Message, window)
	in := make([]ipv4.Message, window)
	free := make([]int, window)
	for i := range window {
		free[i] = i
		in[i].Buffers = [][]byte{make([]byte, 2048)}
		out[i].Buffers = make([][]byte, 1)
	}
	next := 0
	for {
		now := time.Now()
		if now.After(end) {
			return nil
		}
		for i, slot := range free {
			generation[slot]++
			sent[slot] = now
			q := a.questions[next%len(a.questions)]
			next++
			binary.BigEndian.PutUint16(q, uint16(slot)|generation[slot]<<8)
			out[i].Buffers[0] = q
		}
		for todo := out[:len(free)]; len(todo) > 0; {
			n, err := a.pc.WriteBatch(todo, 0)
			if err != nil {
				return err
			}
			todo = todo[n:]
		}
		free = free[:0]
		a.conn.SetReadDeadline(now.Add(500 * time.Millisecond))
		n, err := a.pc.ReadBatch(in, 0)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			a.lost += window
			free = free[:window]
			for i := range free {
				free[i] = i
			}
			continue
		}
		if err != nil {
			return err
		}
		now = time.Now()
		for _, m := range in[:n] {
			id := binary.BigEndian.Uint16(m.Buffers[0])
			slot := int(id & 0xff)
			if slot >= window || generation[slot]&0xff != id>>8 {
				continue
			}
			a.took = append(a.took, uint32(now.Sub(sent[slot]).Microseconds()))
			free = append(free, slot)
		}
	}
}

func (a *asker) open(rate int, end time.Time) error {
	var mu sync.Mutex
	sent := map[uint16]time.Time{}
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, 2048)
		for {
			n, err := a.conn.Read(buf)
			if err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					err = nil
				}
				done <- err
				return
			}
			now := time.Now()
			if n < 2 {
				continue
			}
			id := binary.BigEndian.Uint16(buf)
			mu.Lock()
			if t, ok := sent[id]; ok {
				delete(sent, id)
				a.took = append(a.took, uint32(now.Sub(t).Microseconds()))
			}
			mu.Unlock()
		}
	}()
	begin := time.Now()
	for n := 0; ; n++ {
		due := begin.Add(time.Duration(n) * time.Second / time.Duration(rate))
		if due.After(end) {
			break
		}
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
		q := a.questions[n%len(a.questions)]
		binary.BigEndian.PutUint16(q, uint16(n))
		mu.Lock()
		sent[uint16(n)] = time.Now()
		mu.Unlock()
		if _, err := a.conn.Write(q); err != nil {
			return err
		}
	}
	a.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	err := <-done
	a.lost += len(sent)
	return err
}
