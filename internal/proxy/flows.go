package proxy

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"fairway.dev/fairway/internal/proxy/conntrack"
	"fairway.dev/fairway/internal/proxy/state"
)

// flows deletes stale connections beside the loop, so that programming never
// waits for it: what is added while a deletion is under way goes together in
// the next one, and deletions take at most a tenth of the time, more only if
// that keeps a flow waiting for more than maxFlowWait.
type flows struct {
	cleaner *conntrack.Cleaner
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{}

	mu    sync.Mutex
	todo  []state.Stale
	start map[state.Key][]state.Backend // to be reconciled, once
}

// maxFlowWait is how long a flow to an endpoint that is gone may have to wait
// for the end of the pause after another deletion.
const maxFlowWait = 500 * time.Millisecond

func newFlows(c *conntrack.Cleaner, log *slog.Logger, m *metrics) *flows {
	return &flows{cleaner: c, log: log, metrics: m, wake: make(chan struct{}, 1)}
}

func (f *flows) add(list []state.Stale) {
	if len(list) == 0 {
		return
	}
	f.mu.Lock()
	f.todo = append(f.todo, list...)
	f.mu.Unlock()
	f.kick()
}

// reconcile deletes what leads from these frontends to any other backend.
func (f *flows) reconcile(serving map[state.Key][]state.Backend) {
	f.mu.Lock()
	f.start = serving
	f.mu.Unlock()
	f.kick()
}

func (f *flows) kick() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *flows) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		f.mu.Lock()
		list, serving := f.todo, f.start
		f.todo, f.start = nil, nil
		f.mu.Unlock()
		start := time.Now()
		n, err := f.cleaner.Reconcile(ctx, serving)
		if err == nil && len(list) > 0 {
			var m int
			m, err = f.cleaner.Delete(ctx, list)
			n += m
		}
		took := time.Since(start)
		if err != nil && ctx.Err() == nil {
			f.log.Error("stale connections could not be deleted; they end when they time out", "err", err)
		}
		name := families[0]
		if len(list) > 0 {
			name = families[family(list[0].Key.Addr)]
		}
		f.metrics.conntrackSync.WithLabelValues(name).Observe(took.Seconds())
		f.metrics.conntrackDeleted.WithLabelValues(name).Add(float64(n))
		if n > 0 {
			f.log.Debug("deleted stale connections", "entries", n, "took", took)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(9*took, maxFlowWait)):
		}
	}
}
