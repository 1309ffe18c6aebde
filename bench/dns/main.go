// Command dns compares Fairway's DNS with CoreDNS: the same Services from the
// same API, the same questions, taken in turns in one run. It prints questions
// per second, latencies, processor time for each question, memory, and the time
// from start to ready; and the ratios. bench/dns.sh builds what it needs.
//
// Everything happens in a network namespace of its own, on its loopback.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/netns"
)

var (
	fairway  = flag.String("fairway-node", "", "the fairway-node binary")
	coredns  = flag.String("coredns", "", "the coredns binary; without it Fairway is measured alone")
	cached   = flag.Bool("coredns-cache", false, "let CoreDNS cache the cluster's names too, as kubeadm set it up before 1.31")
	services = flag.Int("services", 10_000, "how many Services; one in ten is headless, of five endpoints")
	rounds   = flag.Int("rounds", 5, "how many times each is measured, in turns")
	duration = flag.Duration("duration", 3*time.Second, "how long a measurement takes")
	window   = flag.Int("window", 128, "how many questions are under way at once")
	rate     = flag.Int("rate", 5000, "questions per second for the latency at an even load")
	startups = flag.Int("startups", 3, "how many times each is started to see how long that takes")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench/dns:", err)
		os.Exit(1)
	}
}

func run() error {
	name := fmt.Sprintf("fw-bench-dns-%d", os.Getpid())
	ns, err := netns.Create(name)
	if err != nil {
		return err
	}
	defer netns.Delete(name)
	defer ns.Close()
	if err := ns.Do(loopbackUp); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fairway-bench-dns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	api := fakeapi.New()
	questions := fill(api, *services)
	known := new(dns.Msg)
	known.SetQuestion("service-1.ns-0.svc.cluster.local.", dns.TypeA)
	l, err := ns.Listen(context.Background(), "tcp", "127.0.0.1:6443")
	if err != nil {
		return err
	}
	web := &http.Server{Handler: api}
	go web.Serve(l)
	defer web.Close()

	all, err := candidates(dir)
	if err != nil {
		return err
	}
	fmt.Printf("%d Services, one in ten headless with 5 endpoints; %d processors, shared with who asks\n", *services, runtime.NumCPU())
	fmt.Println("questions: 7 in 10 A and 1 in 10 AAAA of names that exist, 2 in 10 a search path's misses")
	for range *startups {
		for _, c := range all {
			p, err := c.run(ns, known)
			if err != nil {
				return err
			}
			time.Sleep(3 * time.Second)
			c.idle = append(c.idle, p.memory("VmRSS"))
			c.startPeak = append(c.startPeak, p.memory("VmHWM"))
			p.stop()
		}
	}
	var running []*process
	for _, c := range all {
		p, err := c.run(ns, known)
		if err != nil {
			return err
		}
		defer p.stop()
		running = append(running, p)
	}
	if err := sameAnswers(ns, all, questions); err != nil {
		return err
	}
	for round := range *rounds + 1 {
		for i, c := range all {
			full, err := closed(ns, c.dns, questions, *window, *duration, running[i])
			if err != nil {
				return err
			}
			even, err := open(ns, c.dns, questions, *rate, *duration, running[i])
			if err != nil {
				return err
			}
			if round > 0 { // the first warms
				c.full, c.even = append(c.full, full), append(c.even, even)
			}
		}
	}
	for i, c := range all {
		c.busy = append(c.busy, running[i].memory("VmRSS"))
	}
	report(all)
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// candidates are the servers, Fairway first, each with ports of its own.
func candidates(dir string) ([]*candidate, error) {
	out := []*candidate{{
		name: "fairway", dns: "127.0.0.1:5301", ready: "http://127.0.0.1:8181/ready",
		args: []string{*fairway, "dns", "--master", "http://127.0.0.1:6443", "--listen", "127.0.0.1:5301",
			"--http", "127.0.0.1:8181", "--upstream", "127.0.0.1:5390", "--lameduck", "0s", "--log-level", "error"},
	}}
	if *coredns == "" {
		return out, nil
	}
	cache := "cache 30 {\n disable success cluster.local\n disable denial cluster.local\n }"
	if *cached {
		cache = "cache 30"
	}
	// kubeadm's Corefile, but for the upstreams and what watches the file itself.
	corefile := fmt.Sprintf(`.:5302 {
 bind 127.0.0.1
 errors
 ready 127.0.0.1:8182
 kubernetes cluster.local in-addr.arpa ip6.arpa {
  endpoint http://127.0.0.1:6443
  pods insecure
  fallthrough in-addr.arpa ip6.arpa
  ttl 5
 }
 prometheus 127.0.0.1:9153
 %s
 loadbalance
}
`, cache)
	path := filepath.Join(dir, "Corefile")
	if err := os.WriteFile(path, []byte(corefile), 0o644); err != nil {
		return nil, err
	}
	return append(out, &candidate{name: "coredns", dns: "127.0.0.1:5302", ready: "http://127.0.0.1:8182/ready",
		args: []string{*coredns, "-conf", path, "-quiet"}}), nil
}
