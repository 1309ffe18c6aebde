// Command demo shows every kind of Service at work, with real requests: it
// starts an instance of three nodes, applies examples/, asks each Service who
// answers, and checks what it shows. It ends with status 1 as soon as
// something is not as it should be.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"fairway.dev/fairway/internal/console"
)

func main() {
	d := &demo{out: console.New(os.Stdout)}
	flag.StringVar(&d.fairway, "fairway", "bin/fairway", "the fairway program")
	flag.StringVar(&d.examples, "examples", "examples", "the folder of examples")
	flag.StringVar(&d.dataDir, "data-dir", ownDir, "the instance's data directory")
	down := flag.Bool("down", os.Getenv("CI") == "true", "take everything down at the end (default: when CI=true)")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A name of its own in the kernel, which goes with the process.
	alone, err := net.Listen("unix", "@fairway-demo")
	if err != nil {
		fmt.Fprintln(os.Stderr, "another demo is at work on this machine: wait for its end")
		os.Exit(1)
	}
	defer alone.Close()
	start := time.Now()
	d.clear(ctx)
	err = d.run(ctx)
	if err != nil {
		d.out.Printf("\n%s %v\n", d.out.Red("✗"), err)
	}
	if *down {
		// Also after an interrupt: hence a context of its own.
		if derr := d.command(context.Background(), os.Stdout, "down", "--purge", "--data-dir", d.dataDir); derr != nil {
			err = errors.Join(err, derr)
		}
	}
	if err != nil {
		if !*down {
			d.out.Printf("It is left as it is, for a look: %s/fairway.log. Stop it with: make demo-down\n", d.dataDir)
		}
		os.Exit(1)
	}
	d.out.Printf("\n%s in %.0f seconds.\n", d.out.Green(fmt.Sprintf("All %d steps went as they should", d.steps)), time.Since(start).Seconds())
	if !*down {
		d.farewell()
	}
}

// ownDir is the data directory that is nobody's but the demo's.
const ownDir = "/var/lib/fairway-demo"

// clear takes down what an earlier demo has left running. If it cannot, the
// start that follows says what is in the way.
func (d *demo) clear(ctx context.Context) {
	if _, err := os.Stat(ownDir); d.dataDir != ownDir || errors.Is(err, fs.ErrNotExist) {
		return
	}
	d.out.Printf("The demo before this one is taken down first.\n")
	_ = d.command(ctx, os.Stdout, "down", "--purge", "--data-dir", ownDir)
}

// run is the whole story.
func (d *demo) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for _, step := range []func(context.Context) error{
		d.up,
		d.apply,
		d.pods,
		d.clusterIP,
		d.replacement,
		d.dns,
		d.nodePort,
		d.loadBalancer,
		d.affinity,
		d.portForward,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) farewell() {
	d.out.Printf(`
It goes on running. Try:
  export KUBECONFIG=%s/kubeconfig PATH=$PATH:$PWD/bin
  fairway kubectl get pods,services -o wide      # or your own kubectl
  curl http://%s/                        # the LoadBalancer's address, from this machine
Stop it with:
  make demo-down
`, d.dataDir, d.lbAddress)
}
