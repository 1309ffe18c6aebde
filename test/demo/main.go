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
	flag.StringVar(&d.dataDir, "data-dir", "/var/lib/fairway-demo", "the instance's data directory")
	down := flag.Bool("down", os.Getenv("CI") == "true", "take everything down at the end (default: when CI=true)")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	start := time.Now()
	err := d.run(ctx)
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
