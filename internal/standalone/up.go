package standalone

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"fairway.dev/fairway/internal/console"
	"fairway.dev/fairway/internal/lean"
	"fairway.dev/fairway/internal/version"
)

// UpDetached is Up in the background: it returns when the instance is ready,
// or with the error that ended it. args are the command line to start again.
func UpDetached(args []string, o Options, out *console.Printer) error {
	if err := requireRoot("up"); err != nil {
		return err
	}
	if _, err := o.Complete(); err != nil {
		return err
	}
	return Detach(args, o.DataDir, out)
}

// Up runs an instance until ctx ends. It tells p how it gets on, and p's
// parent, if it has one, when all is ready.
func Up(ctx context.Context, o Options, p *Progress) (err error) {
	defer func() { p.End(err) }()
	if err := requireRoot("up"); err != nil {
		return err
	}
	network, err := o.Complete()
	if err != nil {
		return err
	}
	held, err := lockDataDir(o.DataDir)
	if err != nil {
		return err
	}
	defer held.release()
	log, closeLog, err := openLog(o, p)
	if err != nil {
		return err
	}
	defer closeLog()
	if err := checkRanges(network, Prefix(o.DataDir)); err != nil {
		return err
	}
	sys := &system{opts: o, net: network, log: log, progress: p, pools: make(chan struct{}),
		inst: Instance{Options: o, PID: os.Getpid(), Started: time.Now()}}
	log.Info("starting", "dataDir", o.DataDir, "nodes", o.Nodes, "version", version.Get().Version)
	p.Printf("%s  %s\n\n", p.Bold("Fairway "+version.Get().Version), p.Faint("in "+o.DataDir))

	// Starting up takes several times the memory of what comes after.
	lean.Begin()
	// Parts stop in the reverse order of their start, each group with a context
	// of its own: Pods end while the API still answers.
	err = sys.start(ctx)
	if err == nil {
		if err = sys.announceReady(); err == nil {
			lean.Keep(ctx, log)
			err = sys.wait(ctx)
		}
	}
	if err != nil {
		log.Error("stopping", "error", err)
		p.End(err)
	} else {
		log.Info("stopping")
		p.Printf("\nStopping …\n")
	}
	sys.stop()
	log.Info("stopped")
	return err
}

// openLog opens the instance's log file and routes klog, which the Kubernetes
// libraries write to, into it. In the foreground --verbose shows it on
// standard error instead.
func openLog(o Options, p *Progress) (*slog.Logger, func(), error) {
	level := slog.LevelInfo
	if o.Verbose {
		level = slog.LevelDebug
	}
	opts := &slog.HandlerOptions{Level: level}
	path := filepath.Join(o.DataDir, LogFile)
	// One old log is kept, so that the one before a restart can be read.
	if st, err := os.Stat(path); err == nil && st.Size() > 10<<20 && !p.Detached() {
		if err := os.Rename(path, path+".old"); err != nil {
			return nil, nil, fmt.Errorf("log: %w", err)
		}
	}
	w := os.Stderr
	if !o.Verbose || p.Detached() {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("log: %w", err)
		}
		w = f
	}
	log := slog.New(slog.NewTextHandler(w, opts))
	klog.SetSlogLogger(log.With("from", "kubernetes"))
	return log, func() {
		if w != os.Stderr {
			w.Close()
		}
	}, nil
}
