package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fairway.dev/fairway/internal/netns"
)

// process is a running fairway-node proxy.
type process struct {
	cmd    *exec.Cmd
	ready  time.Duration // from start to the complete table
	exited chan struct{}
	lines  []string
}

// start runs the binary in a namespace and waits until it says that the table
// is complete.
func start(ctx context.Context, ns *netns.NS, binary, kubeconfig, profile string, verbose bool) (*process, error) {
	args := []string{"proxy", "--kubeconfig", kubeconfig, "--hostname-override", nodeName,
		"--cluster-cidr", "100.0.0.0/8", "--nodeport-addresses", "primary",
		// The machine's own limits are not ours to change.
		"--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"}
	if profile != "" {
		args = append(args, "--startup-profile", profile)
	}
	cmd := exec.Command(binary, args...)
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
	go p.follow(r, ready, verbose)
	go func() { <-errs }()
	select {
	case t := <-ready:
		p.ready = t.Sub(began)
		return p, nil
	case <-p.exited:
		return nil, fmt.Errorf("%s ended: %s", binary, strings.Join(p.lines, "\n"))
	case <-ctx.Done():
	case <-time.After(5 * time.Minute):
	}
	p.kill()
	return nil, fmt.Errorf("%s is not ready: %s", binary, strings.Join(p.lines, "\n"))
}

func (p *process) follow(r io.ReadCloser, ready chan<- time.Time, verbose bool) {
	defer r.Close()
	in := bufio.NewScanner(r)
	for in.Scan() {
		if strings.Contains(in.Text(), "msg=programmed ") {
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

// cpu returns the user and system time used so far.
func (p *process) cpu() time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	u, _ := strconv.Atoi(f[11])
	s, _ := strconv.Atoi(f[12])
	return time.Duration(u+s) * 10 * time.Millisecond // USER_HZ is 100
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
