package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/netns"
)

// candidate is a server that is measured, and what was measured.
type candidate struct {
	name  string
	args  []string
	dns   string // where it answers
	ready string // what says that it is ready

	start     []float64 // milliseconds from start to ready
	startCPU  []float64 // milliseconds of processor time until then
	startPeak []float64 // MB at most until then
	idle      []float64 // MB three seconds later
	busy      []float64 // MB after the load
	full      []load    // as fast as it goes
	even      []load    // at the given rate
}

// process is a running candidate.
type process struct{ cmd *exec.Cmd }

// run starts the candidate in the namespace and waits until it says that it is
// ready and answers a question.
func (c *candidate) run(ns *netns.NS, question *dns.Msg) (*process, error) {
	cmd := exec.Command(c.args[0], c.args[1:]...)
	cmd.Stderr = os.Stderr // CoreDNS logs every unready moment to its standard output
	begin := time.Now()
	if err := ns.Do(cmd.Start); err != nil {
		return nil, err
	}
	p := &process{cmd}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return ns.DialContext(ctx, network, addr)
	}, DisableKeepAlives: true}}
	for time.Since(begin) < 2*time.Minute {
		r, err := client.Get(c.ready)
		if err == nil {
			r.Body.Close()
			if a, err := answer(ns, c.dns, question); r.StatusCode == http.StatusOK && err == nil && a[0] == "NOERROR" {
				c.start = append(c.start, float64(time.Since(begin).Microseconds())/1000)
				c.startCPU = append(c.startCPU, float64(p.cpu().Milliseconds()))
				return p, nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.stop()
	return nil, fmt.Errorf("%s is not ready after two minutes", c.name)
}

func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		p.cmd.Process.Kill()
		<-done
	}
}

// memory reads a line of /proc/PID/status, in MB.
func (p *process) memory(field string) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == field+":" {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb / 1024
		}
	}
	return 0
}

// cpu is the processor time used so far (proc_pid_stat(5), fields 14 and 15, in hundredths of a second).
func (p *process) cpu() time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// median is the middle of some values, with the least and the most.
func median(v []float64) (mid, least, most float64) {
	if len(v) == 0 {
		return 0, 0, 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2], v[0], v[len(v)-1]
}

func report(all []*candidate) {
	rows := []struct {
		what string
		unit string
		of   func(*candidate) []float64
		more bool // more is better
	}{
		{"questions a second", "", func(c *candidate) []float64 { return field(c.full, func(l load) float64 { return l.qps }) }, true},
		{"  processor time each", "us", func(c *candidate) []float64 { return field(c.full, func(l load) float64 { return l.cpu }) }, false},
		{"  latency p50", "us", func(c *candidate) []float64 { return field(c.full, func(l load) float64 { return l.p50 }) }, false},
		{"  latency p99", "us", func(c *candidate) []float64 { return field(c.full, func(l load) float64 { return l.p99 }) }, false},
		{"  lost", "", func(c *candidate) []float64 { return field(c.full, func(l load) float64 { return l.lost }) }, false},
		{fmt.Sprintf("at %d a second: p50", *rate), "us", func(c *candidate) []float64 { return field(c.even, func(l load) float64 { return l.p50 }) }, false},
		{"  latency p99", "us", func(c *candidate) []float64 { return field(c.even, func(l load) float64 { return l.p99 }) }, false},
		{"  processor time each", "us", func(c *candidate) []float64 { return field(c.even, func(l load) float64 { return l.cpu }) }, false},
		{"  lost", "", func(c *candidate) []float64 { return field(c.even, func(l load) float64 { return l.lost }) }, false},
		{"start to ready", "ms", func(c *candidate) []float64 { return c.start }, false},
		{"  processor time until then", "ms", func(c *candidate) []float64 { return c.startCPU }, false},
		{"memory at most until then", "MB", func(c *candidate) []float64 { return c.startPeak }, false},
		{"memory when idle", "MB", func(c *candidate) []float64 { return c.idle }, false},
		{"memory after the load", "MB", func(c *candidate) []float64 { return c.busy }, false},
	}
	fmt.Printf("\n%-28s", "median (least to most)")
	for _, c := range all {
		fmt.Printf("%38s", c.name)
	}
	fmt.Println("    ratio")
	for _, r := range rows {
		fmt.Printf("%-28s", r.what)
		var mids []float64
		for _, c := range all {
			mid, least, most := median(r.of(c))
			mids = append(mids, mid)
			fmt.Printf("%38s", fmt.Sprintf("%.4g %s (%.4g to %.4g)", mid, r.unit, least, most))
		}
		if len(mids) == 2 && mids[0] > 0 && mids[1] > 0 {
			fmt.Printf("    %.2f", mids[0]/mids[1])
		}
		fmt.Println()
	}
	if len(all) == 2 {
		q, _, _ := median(field(all[0].full, func(l load) float64 { return l.qps }))
		q2, _, _ := median(field(all[1].full, func(l load) float64 { return l.qps }))
		m, _, _ := median(all[0].busy)
		m2, _, _ := median(all[1].busy)
		fmt.Printf("\naim: twice the questions a second (%.2f times), half the memory (%.2f times)\n", q/q2, m/m2)
	}
}

func field(l []load, of func(load) float64) []float64 {
	var out []float64
	for _, x := range l {
		out = append(out, of(x))
	}
	return out
}
