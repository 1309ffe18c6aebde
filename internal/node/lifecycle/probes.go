package lifecycle

import (
	"bytes"
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/node/probe"
	"fairway.dev/fairway/internal/node/runtime"
)

// target is how probes and hooks reach a container.
func (w *worker) target(c *container) probe.Target {
	t := probe.Target{Container: c.spec,
		Dial: w.m.cfg.Dial,
		Exec: func(ctx context.Context, cmd []string) (int, string, error) { return w.execOutput(ctx, c, cmd) },
	}
	if ips := w.ips(); len(ips) > 0 {
		t.IP = ips[0].String()
	}
	return t
}

// output collects what a command says, up to a limit.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const maxOutput = 10 << 10

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if room := maxOutput - o.buf.Len(); room > 0 {
		o.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (o *output) Close() error { return nil }

func (w *worker) execOutput(ctx context.Context, c *container, cmd []string) (int, string, error) {
	w.mu.Lock()
	rt, id := c.rt, c.id
	w.mu.Unlock()
	out := &output{}
	code, err := rt.Exec(ctx, id, cmd, runtime.Streams{Stdout: out, Stderr: out, Short: true})
	out.mu.Lock()
	defer out.mu.Unlock()
	return code, out.buf.String(), err
}

// probe starts the probes of the running attempt. The caller holds w.mu.
func (w *worker) probe(ctx context.Context, c *container) {
	id, t, began := c.id, w.target(c), c.began
	note := func(change func()) {
		w.mu.Lock()
		if c.id == id && c.running {
			change()
		}
		w.mu.Unlock()
		w.poke()
	}
	unhealthy := func(kind string) func(string) {
		return func(msg string) {
			w.containerEvent(c, v1.EventTypeWarning, "Unhealthy", "%s probe failed: %s", kind, msg)
		}
	}
	rest := func(since time.Time) {
		if p := c.spec.ReadinessProbe; p != nil {
			go probe.Watch(ctx, p, true, t, began, func(ok bool, _ string) { note(func() { c.ready = ok }) }, unhealthy("Readiness"))
		}
		if p := c.spec.LivenessProbe; p != nil {
			go probe.Watch(ctx, p, false, t, since, func(ok bool, msg string) {
				if !ok {
					note(func() { c.kill = "liveness" })
				}
			}, unhealthy("Liveness"))
		}
	}
	p := c.spec.StartupProbe
	if p == nil || c.started {
		rest(began)
		return
	}
	go func() {
		ctx, cancel := context.WithCancel(ctx)
		probe.Watch(ctx, p, true, t, began, func(ok bool, msg string) {
			defer cancel()
			if !ok {
				note(func() { c.kill = "startup" })
				return
			}
			note(func() { c.started, c.ready = true, c.spec.ReadinessProbe == nil })
		}, unhealthy("Startup"))
		w.mu.Lock()
		ok := c.id == id && c.running && c.started
		w.mu.Unlock()
		if ok {
			rest(time.Now())
		}
	}()
}
