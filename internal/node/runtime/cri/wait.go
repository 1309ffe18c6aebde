package cri

import (
	"context"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairway.dev/fairway/internal/node/runtime"
)

// Wait implements runtime.Runtime.
func (r *Runtime) Wait(ctx context.Context, id string) (runtime.State, error) {
	ch := make(chan runtime.State, 1)
	r.mu.Lock()
	r.waiting[r.bare(id)] = append(r.waiting[r.bare(id)], ch)
	if !r.polling {
		r.polling = true
		go r.poll()
	}
	r.mu.Unlock()
	select {
	case st := <-ch:
		return st, nil
	case <-ctx.Done():
		return runtime.State{}, ctx.Err()
	}
}

// poll looks at all containers that somebody waits for, with one call, until
// nobody waits.
func (r *Runtime) poll() {
	t := time.NewTicker(pollPeriod)
	defer t.Stop()
	for {
		select {
		case <-r.life.Done():
			return
		case <-t.C:
		}
		r.mu.Lock()
		if len(r.waiting) == 0 {
			r.polling = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		r.look()
	}
}

// look answers those who wait for a container that has ended.
func (r *Runtime) look() {
	ctx, cancel := context.WithTimeout(r.life, 10*time.Second)
	defer cancel()
	list, err := r.rt.ListContainers(ctx, &api.ContainerFilter{LabelSelector: map[string]string{labelPrefix: r.cfg.Prefix}})
	if err != nil {
		return // the daemon restarts; containers run on
	}
	running := map[string]bool{}
	for _, c := range list {
		running[c.Id] = c.State == api.ContainerState_CONTAINER_RUNNING || c.State == api.ContainerState_CONTAINER_CREATED
	}
	r.mu.Lock()
	var ended []string
	for id := range r.waiting {
		if !running[id] {
			ended = append(ended, id)
		}
	}
	r.mu.Unlock()
	for _, id := range ended {
		st, err := r.state(ctx, id)
		if err != nil {
			st = runtime.State{ID: r.name + "://" + id, ExitCode: 137, Unknown: true, FinishedAt: time.Now()}
		} else if st.Running {
			continue // it began since the list was made
		}
		r.mu.Lock()
		for _, ch := range r.waiting[id] {
			ch <- st
		}
		delete(r.waiting, id)
		r.mu.Unlock()
	}
}
