// Command proxy measures `fairway-node proxy` at several sizes of cluster, and
// kube-proxy beside it where one is given, and prints a table: cold start, one
// change, memory, CPU, restart, and the latency of new connections.
//
// For each size it makes network namespaces of its own, serves the load from an
// in-memory API (package fakeapi, over TLS) and starts the binary against it.
// It needs root and touches nothing outside its namespaces, which it removes.
//
//	go run ./bench/proxy -binary bin/fairway-node
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// size is a load: so many Services of so many endpoints each.
type size struct{ services, endpoints int }

func (s size) String() string { return fmt.Sprintf("%d×%d", s.services, s.endpoints) }

func main() {
	var (
		binary  = flag.String("binary", "bin/fairway-node", "the program to measure")
		other   = flag.String("kube-proxy", "", "a kube-proxy to measure beside it")
		slow    = flag.Int("kube-proxy-changes", 30, "single changes to measure with kube-proxy")
		sizes   = flag.String("sizes", "1000x2,10000x2,5000x50,44000x1,100000x10", "Services x endpoints each, with commas between")
		changes = flag.Int("changes", 500, "single changes to measure")
		conns   = flag.Int("connections", 4000, "new connections to measure, each way; 0 for none")
		starts  = flag.Int("starts", 3, "cold starts and restarts to measure; the median is printed")
		verbose = flag.Bool("v", false, "show what the program logs")
		profile = flag.String("profile", "", "write CPU profiles of the starts to files of this prefix")
	)
	flag.Parse()
	if *changes > maxChanges {
		fmt.Fprintf(os.Stderr, "bench/proxy: -changes: at most %d\n", maxChanges)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := options{*changes, *conns, *starts, *verbose, *profile}
	programs := []measured{{fairway(*binary), o}}
	if *other != "" {
		o.changes = *slow
		programs = append(programs, measured{kubeProxy(*other), o})
	}
	if err := run(ctx, programs, *sizes); err != nil {
		fmt.Fprintln(os.Stderr, "bench/proxy:", err)
		os.Exit(1)
	}
}

type options struct {
	changes, conns, starts int
	verbose                bool
	profile                string
}

// measured is a program, and how.
type measured struct {
	program
	options
}

func run(ctx context.Context, programs []measured, sizes string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root: it makes network namespaces")
	}
	var list []size
	for _, s := range strings.Split(sizes, ",") {
		a, b, ok := strings.Cut(s, "x")
		n, err1 := strconv.Atoi(a)
		m, err2 := strconv.Atoi(b)
		if !ok || err1 != nil || err2 != nil || n < 1 || m < 1 || n > 1<<20 || n*m > 1<<22 {
			return fmt.Errorf("-sizes: %q is not like 1000x2", s)
		}
		list = append(list, size{n, m})
	}
	fmt.Printf("%d CPUs, load average %s, %s\n\n", runtime.NumCPU(), load(), time.Now().UTC().Format(time.RFC3339))
	fmt.Println("| program, Services×endpoints | cold start s (CPU s) | RSS MiB (peak) | restart s (CPU s) | 1 change p50 ms | p99 ms | CPU ms/change | kernel MiB | new connection ÷ direct |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	for _, s := range list {
		var first *result
		for _, p := range programs {
			r, err := measure(ctx, p.program, s, p.options)
			if err != nil {
				return fmt.Errorf("%s %v: %w", p.name, s, err)
			}
			fmt.Println(r.row())
			if first == nil {
				first = r
			} else {
				fmt.Println(first.beside(r))
			}
			debug.FreeOSMemory() // what this load has left must not cost the next one
		}
	}
	fmt.Print(`
cold start: from the start of the process, with nothing in the kernel, to the
  complete table (the program's own word, a log line or a metric, checked against the number of map
  elements in the kernel); restart: the same with the table already there,
  after kill -9. Medians, and the CPU time of the program and of the kernel on
  its account in the last one.
1 change: one endpoint replaced; from the API server having it to the kernel's
  announcement of the transaction. The next change comes 2 ms after; with
  kube-proxy 1.1 s, more than its least time between two syncs.
new connection: TCP connect through a ClusterIP over a direct one to the same
  server in another namespace, alternated; median ÷ median.
kernel: growth of Slab and VmallocUsed of the machine: noisy.
`)
	fmt.Printf("load average at the end: %s\n", load())
	return nil
}

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return "?"
	}
	return f[0]
}
