package lifecycle

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const defaultGrace = 30 * time.Second

// leastGrace is what a container has after its preStop hook, whatever that took.
const leastGrace = 2 * time.Second

func (w *worker) grace() time.Duration {
	s := w.pod.Spec.TerminationGracePeriodSeconds
	if w.pod.DeletionGracePeriodSeconds != nil {
		s = w.pod.DeletionGracePeriodSeconds
	}
	if s == nil {
		return defaultGrace
	}
	return time.Duration(*s) * time.Second
}

// imageChanged is why a container is ended that is to have another image.
const imageChanged = "image"

// killMarked ends the running attempts that a probe or hook has condemned;
// their exits start new ones.
func (w *worker) killMarked(ctx context.Context) {
	var marked []*container
	w.mu.Lock()
	for _, c := range w.ctrs {
		if c.running && c.kill != "" {
			marked = append(marked, c)
		}
	}
	w.mu.Unlock()
	for _, c := range marked {
		why, p := "failed "+c.kill+" probe", c.spec.LivenessProbe
		switch c.kill {
		case "startup":
			p = c.spec.StartupProbe
		case "FailedPostStartHook":
			why, p = "FailedPostStartHook", nil
		case imageChanged:
			why, p = "definition changed", nil
		}
		grace := w.grace()
		if p != nil && p.TerminationGracePeriodSeconds != nil {
			grace = time.Duration(*p.TerminationGracePeriodSeconds) * time.Second
		}
		w.containerEvent(c, v1.EventTypeNormal, "Killing", "Container %s %s, will be restarted", c.spec.Name, why)
		w.stop(ctx, c, time.Now().Add(grace), nil)
	}
}

// stop runs the preStop hook and then stops one container. hard ends the wait.
func (w *worker) stop(ctx context.Context, c *container, deadline time.Time, hard <-chan struct{}) {
	w.mu.Lock()
	running, rt, id := c.running, c.rt, c.id
	w.mu.Unlock()
	if !running {
		return
	}
	done := make(chan struct{})
	defer close(done)
	if hard != nil {
		go func() {
			select {
			case <-hard:
				rt.Signal(ctx, id, unix.SIGKILL) //nolint:errcheck // Stop reports
			case <-done:
			}
		}()
	}
	if h := c.spec.Lifecycle; h != nil && h.PreStop != nil && time.Until(deadline) > 0 {
		hctx, cancel := context.WithDeadline(ctx, deadline)
		if hard != nil {
			go func() {
				select {
				case <-hard:
					cancel()
				case <-hctx.Done():
				}
			}()
		}
		if err := w.hook(hctx, c, h.PreStop); err != nil && ctx.Err() == nil && w.view(c).running {
			w.containerEvent(c, v1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v", err)
		}
		cancel()
		deadline = later(deadline, time.Now().Add(leastGrace))
	}
	sig := unix.Signal(0)
	if h := c.spec.Lifecycle; h != nil && h.StopSignal != nil {
		sig = unix.SignalNum(string(*h.StopSignal))
	}
	if err := rt.Stop(ctx, id, sig, max(time.Until(deadline), 0)); err != nil && ctx.Err() == nil {
		w.m.cfg.Logger.Warn("cannot stop a container", "pod", w.name, "container", c.spec.Name, "err", err)
		return
	}
	// The exit is noted by the goroutine that follows the container.
	for ctx.Err() == nil && w.view(c).running {
		time.Sleep(time.Millisecond)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// stopAll stops the Pod's containers: all but sidecars at once, then sidecars
// in the reverse of the order they were started in.
func (w *worker) stopAll(ctx context.Context, grace time.Duration, hard <-chan struct{}) {
	deadline := time.Now().Add(grace)
	var wg sync.WaitGroup
	for _, c := range w.ctrs {
		if !w.view(c).running {
			continue
		}
		w.mu.Lock()
		first := !c.doomed
		c.doomed = true
		w.mu.Unlock()
		if first {
			w.containerEvent(c, v1.EventTypeNormal, "Killing", "Stopping container %s", c.spec.Name)
		}
		if !c.sidecar {
			wg.Add(1)
			go func() {
				defer wg.Done()
				w.stop(ctx, c, deadline, hard)
			}()
		}
	}
	wg.Wait()
	for _, c := range slices.Backward(w.ctrs) {
		if c.sidecar {
			w.stop(ctx, c, deadline, hard)
		}
	}
}

// terminate ends a Pod that is being deleted: it leaves the endpoints
// everywhere, its containers stop, its network and files go, and last the API
// object. gone says that the API has it no more, and that haste is wanted.
func (w *worker) terminate(ctx context.Context, gone bool) {
	begin := time.Now()
	hard := make(chan struct{})
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	go w.hurry(life, begin, hard)
	w.mu.Lock()
	w.pod = w.next
	w.mu.Unlock()
	grace := w.grace()
	if gone {
		grace = min(grace, time.Second)
	}
	if grace > 0 && !gone && w.anyRunning() {
		// What is left after waiting is enough for most, and never nothing.
		w.leaveEndpoints(ctx, grace/2, hard)
		grace = max(grace-time.Since(begin), min(grace, leastGrace))
	}
	w.stopAll(ctx, grace, hard)
	for try := 0; ctx.Err() == nil; try++ {
		err := errors.Join(w.removeSandbox(ctx, w.sb), w.vols.Teardown())
		if err == nil {
			break
		}
		if try == 0 {
			w.event(v1.EventTypeWarning, "FailedKillPod", "error killing pod: %v", err)
		}
		sleep(ctx, time.Second)
	}
	if ctx.Err() != nil {
		return // the next process goes on from here
	}
	w.torn = true
	if !gone {
		w.report(ctx)
		w.deleteFromAPI(ctx)
	}
	if ctx.Err() == nil {
		if err := os.RemoveAll(w.dir); err != nil {
			w.m.cfg.Logger.Warn("cannot remove a Pod's directory", "dir", w.dir, "err", err)
		}
	}
}

// hurry closes hard when the Pod has vanished from the API, or its grace period
// was shortened and has passed.
func (w *worker) hurry(ctx context.Context, begin time.Time, hard chan struct{}) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		w.mu.Lock()
		over := w.isGone || w.next.DeletionGracePeriodSeconds != nil && w.pod.DeletionGracePeriodSeconds != nil &&
			*w.next.DeletionGracePeriodSeconds < *w.pod.DeletionGracePeriodSeconds &&
			time.Since(begin) >= time.Duration(*w.next.DeletionGracePeriodSeconds)*time.Second
		if w.isGone && time.Since(begin) < time.Second {
			over = false
		}
		w.mu.Unlock()
		if over {
			close(hard)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-t.C:
		}
	}
}

func (w *worker) anyRunning() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.ctrs, func(c *container) bool { return c.running })
}

// leaveEndpoints waits until nobody sends new connections to the Pod, no longer
// than limit.
func (w *worker) leaveEndpoints(ctx context.Context, limit time.Duration, hard <-chan struct{}) {
	if w.m.cfg.Unrouted == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	go func() {
		select {
		case <-hard:
			cancel()
		case <-ctx.Done():
		}
	}()
	begin := time.Now()
	if err := w.m.cfg.Unrouted(ctx, w.pod); err != nil {
		w.m.cfg.Logger.Warn("a Pod is stopped although it may still get connections", "pod", w.name, "namespace", w.namespace,
			"waited", time.Since(begin).Round(time.Millisecond), "err", err)
		return
	}
	w.m.cfg.Logger.Debug("Pod has left the endpoints", "pod", w.name, "namespace", w.namespace, "took", time.Since(begin))
}

// deleteFromAPI deletes the Pod's object now that nothing is left of it.
func (w *worker) deleteFromAPI(ctx context.Context) {
	for ctx.Err() == nil {
		err := w.m.cfg.Client.CoreV1().Pods(w.namespace).Delete(ctx, w.name, metav1.DeleteOptions{
			GracePeriodSeconds: ptr.To(int64(0)), Preconditions: &metav1.Preconditions{UID: &w.uid}})
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return
		}
		w.m.cfg.Logger.Warn("cannot delete a Pod that has ended", "pod", w.name, "err", err)
		sleep(ctx, time.Second)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
