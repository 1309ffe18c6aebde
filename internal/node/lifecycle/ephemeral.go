package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Ephemeral containers (`kubectl debug`) are added to a Pod that is there
// already. Each is started once, whether or not the Pod's own containers run,
// and never again; it ends with the Pod, and what becomes of it changes neither
// the Pod's phase nor its readiness.

// takeEphemeral adds the ephemeral containers that have appeared in the Pod; the
// API lets nobody change or remove one. The caller holds w.mu.
func (w *worker) takeEphemeral() {
	for i := range w.pod.Spec.EphemeralContainers {
		e := &w.pod.Spec.EphemeralContainers[i]
		if slices.ContainsFunc(w.ctrs, func(c *container) bool { return c.spec.Name == e.Name }) {
			continue
		}
		w.ctrs = append(w.ctrs, &container{spec: (*v1.Container)(&e.EphemeralContainerCommon), ephemeral: true, target: e.TargetContainerName})
	}
}

// startEphemeral starts those that have not been started yet. It answers when to
// try again if that failed.
func (w *worker) startEphemeral(ctx context.Context) time.Duration {
	wait := forever
	for _, c := range w.ctrs {
		if !c.ephemeral || ctx.Err() != nil {
			continue
		}
		if st := w.view(c); !st.running && !st.ended {
			wait = min(wait, w.start(ctx, c))
		}
	}
	return wait
}

// targetID is the ID of the container whose processes an ephemeral one is to
// see, "" if it names none.
func (w *worker) targetID(c *container) (string, error) {
	if c.target == "" {
		return "", nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.ctrs {
		if o.spec.Name == c.target && o.running {
			return o.id, nil
		}
	}
	return "", fmt.Errorf("unable to find target container %s: it does not run", c.target)
}
