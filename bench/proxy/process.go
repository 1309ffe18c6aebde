package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fairway.dev/fairway/internal/netns"
)

// process is a running program.
type process struct {
	cmd    *exec.Cmd
	ready  time.Duration // from start to the complete table
	exited chan struct{}
	lines  []string
}

// start runs the program in a namespace and waits until the kernel holds the
// complete table.
func start(ctx context.Context, ns *netns.NS, prog program, kubeconfig, profile string, verbose bool) (*process, error) {
	cmd := exec.Command(prog.path, prog.args(kubeconfig, profile)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = w
	p := &process{cmd: cmd, exited: make(chan struct{})}
	var began time.Time
	errs := make(chan error)
	go func() { // Pdeathsig is the thread's: this one lives as long as the process
		errs <- ns.Do(func() error {
			began = time.Now()
			err := cmd.Start()
			w.Close()
			errs <- err
			if err == nil {
				cmd.Wait()
				close(p.exited)
			}
			return nil
		})
	}()
	if err := <-errs; err != nil {
		r.Close()
		return nil, err
	}
	ready := make(chan time.Time, 1)
	go p.follow(r, prog.sign, ready, verbose)
	go func() { <-errs }()
	if prog.sign == "" {
		go p.poll(ns, ready)
	}
	select {
	case t := <-ready:
		p.ready = t.Sub(began)
		return p, nil
	case <-p.exited:
		return nil, fmt.Errorf("%s ended: %s", prog.path, strings.Join(p.lines, "\n"))
	case <-ctx.Done():
	case <-time.After(5 * time.Minute):
	}
	p.kill()
	return nil, fmt.Errorf("%s is not ready: %s", prog.path, strings.Join(p.lines, "\n"))
}

// follow reads what the program logs; a line with the sign in it says that the
// table is complete.
func (p *process) follow(r io.ReadCloser, sign string, ready chan<- time.Time, verbose bool) {
	defer r.Close()
	in := bufio.NewScanner(r)
	for in.Scan() {
		if sign != "" && strings.Contains(in.Text(), sign) {
			ready <- time.Now()
		}
		if verbose {
			fmt.Fprintln(os.Stderr, in.Text())
		}
		if len(p.lines) < 20 {
			p.lines = append(p.lines, in.Text())
		}
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.exited
}

// memory returns VmRSS and VmHWM in bytes.
func (p *process) memory() (rss, peak int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	return kib(string(b), "VmRSS:") << 10, kib(string(b), "VmHWM:") << 10
}

// poll asks for the metrics that kube-proxy and we have in common, until they
// say that the rules were programmed for the first time.
func (p *process) poll(ns *netns.NS, ready chan<- time.Time) {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DialContext: ns.DialContext}}
	defer client.CloseIdleConnections()
	for {
		select {
		case <-p.exited:
			return
		case <-time.After(5 * time.Millisecond):
		}
		resp, err := client.Get("http://127.0.0.1:10249/metrics")
		if err != nil {
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		// Zero until the first time, then the time in seconds.
		if _, at, ok := strings.Cut(string(body), "\nkubeproxy_sync_proxy_rules_last_timestamp_seconds"); ok {
			line, _, _ := strings.Cut(at, "\n")
			if v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64); err == nil && v > 0 {
				ready <- time.Now()
				return
			}
		}
	}
}

// cpu returns the user and system time used so far, by the programs it ran too.
func (p *process) cpu() time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 15 {
		return 0
	}
	ticks := 0
	for _, v := range f[11:15] {
		n, _ := strconv.Atoi(v)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}

// kernelMemory returns what the machine's kernel has allocated, in bytes.
func kernelMemory() int {
	b, _ := os.ReadFile("/proc/meminfo")
	return (kib(string(b), "Slab:") + kib(string(b), "VmallocUsed:")) << 10
}

func kib(text, key string) int {
	for _, l := range strings.Split(text, "\n") {
		if rest, ok := strings.CutPrefix(l, key); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}
