package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/netns"
)

type result struct {
	program         program
	size            size
	cold, restart   []time.Duration
	coldCPU         time.Duration
	restartCPU      time.Duration
	rss, peak       int
	changes         []time.Duration
	cpuPerChange    time.Duration
	kernel          int
	direct, through []time.Duration
}

func (r *result) row() string {
	ratio := "-"
	if len(r.direct) > 0 {
		ratio = fmt.Sprintf("%.2f (%.0f µs)", float64(quantile(r.through, .5))/float64(quantile(r.direct, .5)), float64(quantile(r.direct, .5))/1e3)
	}
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	return fmt.Sprintf("| %s %v | %.2f (%.2f) | %d (%d) | %.2f (%.2f) | %.2f | %.2f | %.2f | %d | %s |",
		r.program.name, r.size, quantile(r.cold, .5).Seconds(), r.coldCPU.Seconds(), r.rss>>20, r.peak>>20, quantile(r.restart, .5).Seconds(), r.restartCPU.Seconds(),
		ms(quantile(r.changes, .5)), ms(quantile(r.changes, .99)), ms(r.cpuPerChange), r.kernel>>20, ratio)
}

// beside is a row of how many times r's figures another's are.
func (r *result) beside(o *result) string {
	times := func(a, b time.Duration) string { return fmt.Sprintf("%.0f ×", float64(b)/float64(a)) }
	q := func(list []time.Duration) time.Duration { return quantile(list, .5) }
	return fmt.Sprintf("| ratio | %s | %.1f × | %s | %s | %s | %s | | |", times(q(r.cold), q(o.cold)), float64(o.rss)/float64(r.rss), times(q(r.restart), q(o.restart)),
		times(q(r.changes), q(o.changes)), times(quantile(r.changes, .99), quantile(o.changes, .99)), times(r.cpuPerChange, o.cpuPerChange))
}

func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(list))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// measure does everything for one size.
func measure(ctx context.Context, prog program, s size, o options) (*result, error) {
	dir, err := os.MkdirTemp("", "fairway-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	api := fakeapi.New()
	fill(api, s)
	// This process stands for a machine of its own: it collects its garbage now,
	// not while the other one works.
	debug.FreeOSMemory()
	r := &result{program: prog, size: s}

	// Cold starts, each in a new namespace. The last one is kept.
	var ns *netns.NS
	var kubeconfig string
	var p *process
	var cleanup func()
	defer func() {
		if p != nil {
			p.kill()
		}
		if cleanup != nil {
			cleanup()
		}
	}()
	for i := range o.starts {
		if p != nil {
			p.kill()
			p = nil
			cleanup()
		}
		if ns, cleanup, err = newNode(fmt.Sprintf("fw-b-%d-%d", os.Getpid(), i)); err != nil {
			return nil, err
		}
		if kubeconfig, err = serve(ctx, ns, api, filepath.Join(dir, fmt.Sprint(i))); err != nil {
			return nil, err
		}
		before := kernelMemory()
		profile := o.profile
		if profile != "" {
			profile = fmt.Sprintf("%s-%v-%d", profile, s, i)
		}
		if p, err = start(ctx, ns, prog, kubeconfig, profile, o.verbose); err != nil {
			return nil, err
		}
		r.cold = append(r.cold, p.ready)
		r.coldCPU = p.cpu()
		_, r.peak = p.memory()
		n, err := elements(ns)
		if err != nil {
			return nil, err
		}
		if want := prog.elements(s); n < want {
			return nil, fmt.Errorf("the kernel holds %d elements, want %d at least", n, want)
		}
		time.Sleep(time.Second)
		r.kernel = kernelMemory() - before
	}
	for i := range o.starts {
		p.kill()
		p = nil
		profile := o.profile
		if profile != "" {
			profile = fmt.Sprintf("%s-%v-again-%d", profile, s, i)
		}
		if p, err = start(ctx, ns, prog, kubeconfig, profile, o.verbose); err != nil {
			return nil, err
		}
		r.restart = append(r.restart, p.ready)
		r.restartCPU = p.cpu()
	}
	time.Sleep(time.Second)
	if err := r.oneByOne(ctx, ns, api, p, o.changes); err != nil {
		return nil, err
	}
	r.rss, _ = p.memory()
	if o.conns > 0 {
		err = r.connections(ctx, ns, api, s, o.conns)
	}
	return r, err
}

// newNode makes a namespace with loopback up.
func newNode(name string) (*netns.NS, func(), error) {
	ns, err := netns.Create(name)
	if err != nil {
		return nil, nil, err
	}
	drop := func() { ns.Close(); netns.Delete(name) }
	if err := linkUp(ns, "lo"); err != nil {
		drop()
		return nil, nil, err
	}
	return ns, drop, nil
}

// oneByOne replaces one endpoint after the other and waits each time for the
// kernel to announce the transaction.
func (r *result) oneByOne(ctx context.Context, ns *netns.NS, api *fakeapi.Server, p *process, n int) error {
	mon, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns.Fd()})
	if err != nil {
		return err
	}
	defer mon.Close()
	if err := mon.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return err
	}
	done := make(chan time.Time, 1024)
	go func() {
		for {
			msgs, err := mon.Receive()
			now := time.Now()
			if errors.Is(err, unix.ENOBUFS) {
				continue
			} else if err != nil {
				return
			}
			for _, m := range msgs {
				if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
					done <- now
				}
			}
		}
	}()
	before := p.cpu()
	for i := range n {
		sl := slice(r.size, i*7919%r.size.services, 0, i+1)
		began := time.Now()
		api.Set(fakeapi.EndpointSlices, sl)
		select {
		case t := <-done:
			r.changes = append(r.changes, t.Sub(began))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(30 * time.Second):
			return fmt.Errorf("change %d did not reach the kernel in 30 s", i)
		}
		time.Sleep(r.program.pace)
		for len(done) > 0 {
			<-done
		}
	}
	if n > 0 {
		r.cpuPerChange = (p.cpu() - before) / time.Duration(n)
	}
	return nil
}

// elements counts the elements of all sets and maps in a namespace. Kernels
// since 6.16 tell the count of each; older ones are made to list them, which
// takes the square of a set's size.
func elements(ns *netns.NS) (n int, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns.Fd()})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetReadBuffer(8 << 20)
	sets, err := dump(conn, unix.NFT_MSG_GETSET, unix.AF_UNSPEC, nil)
	if err != nil {
		return 0, fmt.Errorf("list sets: %w", err)
	}
	for _, m := range sets {
		attrs, err := netlink.UnmarshalAttributes(m.Data[4:])
		if err != nil {
			return 0, err
		}
		var which []netlink.Attribute
		count := -1
		for _, a := range attrs {
			switch a.Type {
			case unix.NFTA_SET_TABLE:
				which = append(which, netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: a.Data})
			case unix.NFTA_SET_NAME:
				which = append(which, netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: a.Data})
			case nftaSetCount:
				if len(a.Data) == 4 {
					count = int(binary.BigEndian.Uint32(a.Data))
				}
			}
		}
		if count < 0 {
			if count, err = listed(conn, m.Data[0], which); err != nil {
				return 0, fmt.Errorf("list elements: %w", err)
			}
		}
		n += count
	}
	return n, nil
}

// nftaSetCount is NFTA_SET_COUNT of linux/netfilter/nf_tables.h.
const nftaSetCount = 20

// listed counts a set's elements by listing them.
func listed(conn *netlink.Conn, family byte, which []netlink.Attribute) (n int, err error) {
	elems, err := dump(conn, unix.NFT_MSG_GETSETELEM, family, which)
	if err != nil {
		return 0, err
	}
	for _, e := range elems {
		attrs, err := netlink.UnmarshalAttributes(e.Data[4:])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Type&^unix.NLA_F_NESTED == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				list, err := netlink.UnmarshalAttributes(a.Data)
				if err != nil {
					return 0, err
				}
				n += len(list)
			}
		}
	}
	return n, nil
}

func dump(conn *netlink.Conn, typ uint16, family byte, attrs []netlink.Attribute) ([]netlink.Message, error) {
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	return conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{family, 0, 0, 0}, b...),
	})
}
