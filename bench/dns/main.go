// Command dns compares Fairway's DNS with CoreDNS: the same Services from the
// same API, the same questions, taken in turns in one run. It prints questions
// per second, latencies, processor time for each question, memory, and the time
// from start to ready; and the ratios. bench/dns.sh builds what it needs.
//
// With -compare it measures nothing and asks both every kind of question about
// a cluster full of odd things instead; it fails if they differ in a way that
// differences.go has no reason for.
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

	compare = flag.Bool("compare", false, "measure nothing: ask both everything about a cluster full of odd things, and say where they differ")
	seed    = flag.Uint64("seed", 0, "of the odd things and of what becomes of them; 0 for another one each time")
	changes = flag.Int("changes", 3, "how many times the odd things change, and all is asked again")
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
	l, err := ns.Listen(context.Background(), "tcp", "127.0.0.1:6443")
	if err != nil {
		return err
	}
	web := &http.Server{Handler: api}
	go web.Serve(l)
	defer web.Close()
	if *compare {
		return comparison(ns, dir, api)
	}
	questions := fill(api, *services)
	known := new(dns.Msg)
	known.SetQuestion("service-1.ns-0.svc.cluster.local.", dns.TypeA)

	all, err := candidates(dir, "insecure", false)
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

// upstream is whom both ask about other names. When they are measured nobody is there.
const upstream = "127.0.0.1:5390"

// candidates are the servers, Fairway first, each with ports of its own. pods
// says which names of Pods have addresses, forward whether CoreDNS asks the upstream.
func candidates(dir, pods string, forward bool) ([]*candidate, error) {
	out := []*candidate{{
		name: "fairway", dns: "127.0.0.1:5301", ready: "http://127.0.0.1:8181/ready",
		args: []string{*fairway, "dns", "--master", "http://127.0.0.1:6443", "--listen", "127.0.0.1:5301",
			"--http", "127.0.0.1:8181", "--upstream", upstream, "--pods", pods, "--lameduck", "0s", "--log-level", "error"},
	}}
	if *coredns == "" {
		return out, nil
	}
	cache := "cache 30 {\n disable success cluster.local\n disable denial cluster.local\n }"
	if *cached {
		cache = "cache 30"
	}
	bind := "bind 127.0.0.1"
	if forward {
		cache, bind = "forward . "+upstream, "" // by its interfaces' addresses it finds its own Service
	}
	// kubeadm's Corefile, but for the upstreams and what watches the file itself.
	corefile := fmt.Sprintf(`.:5302 {
 %s
 errors
 ready 127.0.0.1:8182
 kubernetes cluster.local in-addr.arpa ip6.arpa {
  endpoint http://127.0.0.1:6443
  pods %s
  fallthrough in-addr.arpa ip6.arpa
  ttl 5
 }
 prometheus 127.0.0.1:9153
 %s
 loadbalance
}
`, bind, pods, cache)
	path := filepath.Join(dir, "Corefile")
	if err := os.WriteFile(path, []byte(corefile), 0o644); err != nil {
		return nil, err
	}
	return append(out, &candidate{name: "coredns", dns: "127.0.0.1:5302", ready: "http://127.0.0.1:8182/ready",
		args: []string{*coredns, "-conf", path, "-quiet"}}), nil
}
