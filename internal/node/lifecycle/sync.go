package lifecycle

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/node/volumes"
)

// Back-off of restarts, as upstream's kubelet has it.
const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 5 * time.Minute
)

// forever is how long a round with nothing to come may wait for news.
const forever = 24 * time.Hour

// refreshVolumes is how often what volumes show of the API is looked up.
const refreshVolumes = time.Minute

// sync brings the Pod one round nearer to what it should be, and answers when
// to come back if nothing happens before.
func (w *worker) sync(ctx context.Context) time.Duration {
	if w.torn {
		return forever
	}
	if phase := w.pod.Status.Phase; phase == v1.PodSucceeded || phase == v1.PodFailed {
		// Ended before this process began, or by somebody else's hand.
		if err := w.endAll(ctx); err != nil {
			return w.complain("FailedKillPod", err)
		}
		w.torn = true
		return forever
	}
	wait := forever
	if left, limited := w.deadline(); limited {
		if left <= 0 {
			return w.fail(ctx, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
		}
		wait = left
	}
	if w.finished() {
		if err := w.endAll(ctx); err != nil {
			return w.complain("FailedKillPod", err)
		}
		w.torn = true
		return forever
	}
	if err := w.ensureVolumes(ctx); err != nil {
		if ctx.Err() == nil && err.Error() != w.volumeErr {
			w.volumeErr = err.Error()
			w.event(v1.EventTypeWarning, "FailedMount", "%v", err)
		}
		return min(wait, time.Second)
	}
	w.volumeErr = ""
	if volumes.Changing(w.pod) {
		wait = min(wait, time.Until(w.refreshAt))
	}
	if err := w.ensureSandbox(ctx); err != nil {
		if ctx.Err() == nil {
			w.event(v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
		}
		w.backoffSB = min(max(2*w.backoffSB, time.Second), 30*time.Second)
		return min(wait, w.backoffSB)
	}
	w.backoffSB = 0
	w.killMarked(ctx)
	wait = min(wait, w.startEphemeral(ctx))
	return min(wait, w.advance(ctx))
}

// advance starts what is to run now: init containers one after the other, then
// all others.
func (w *worker) advance(ctx context.Context) time.Duration {
	wait := forever
	begun := w.mainsBegun()
	for _, c := range w.ctrs {
		if !c.init {
			break
		}
		st := w.view(c)
		if c.sidecar {
			if !st.running {
				wait = min(wait, w.startOrBackOff(ctx, c))
				st = w.view(c)
			}
			if !begun && !(st.running && st.started) {
				return wait // its startup probe, or its next start, comes first
			}
			continue
		}
		if begun || st.ended && st.code == 0 {
			continue
		}
		if !st.running {
			if st.ended && !w.restarts(c, st.code) {
				return 0 // finished() sees to it
			}
			wait = min(wait, w.startOrBackOff(ctx, c))
		}
		return wait
	}
	for _, c := range w.ctrs {
		if !c.main() || ctx.Err() != nil {
			continue
		}
		if st := w.view(c); !st.running && (!st.ended || w.restarts(c, st.code)) {
			wait = min(wait, w.startOrBackOff(ctx, c))
		}
	}
	return wait
}

// takeImages has containers started again whose image has changed, which is all
// that may change of one in place. The caller holds w.mu.
func (w *worker) takeImages() {
	each(w.pod, func(spec *v1.Container, init bool) {
		i := slices.IndexFunc(w.ctrs, func(c *container) bool { return c.spec.Name == spec.Name && !c.ephemeral })
		if i < 0 || w.ctrs[i].spec.Image == spec.Image {
			return
		}
		c := w.ctrs[i]
		c.spec.Image = spec.Image
		c.backoff, c.image = 0, 0 // the new one has not failed yet
		if c.running && (!init || c.sidecar) {
			c.kill, c.again = imageChanged, true
		}
	})
}

// view is a container's state at one moment.
type view struct {
	running, started, ended bool
	code                    int
}

func (w *worker) view(c *container) view {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := view{running: c.running, started: c.started, ended: c.exit != nil && !c.running}
	if v.ended {
		v.code = c.exit.ExitCode
	}
	return v
}

// mainsBegun tells whether the init containers are behind us.
func (w *worker) mainsBegun() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.ctrs {
		if c.main() && c.id != "" {
			return true
		}
	}
	return false
}

// restarts tells whether a container that has ended is to be started again.
func (w *worker) restarts(c *container, code int) bool {
	if c.sidecar || c.again {
		return true
	}
	if c.ephemeral {
		return false
	}
	policy := w.pod.Spec.RestartPolicy
	if c.spec.RestartPolicy != nil {
		policy = v1.RestartPolicy(*c.spec.RestartPolicy)
		for _, rule := range c.spec.RestartPolicyRules {
			if rule.ExitCodes == nil {
				continue
			}
			in := false
			for _, v := range rule.ExitCodes.Values {
				in = in || int(v) == code
			}
			if in == (rule.ExitCodes.Operator == v1.ContainerRestartRuleOnExitCodesOpIn) && rule.Action == v1.ContainerRestartRuleActionRestart {
				return true
			}
		}
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return code != 0
	}
	return !c.init || code != 0
}

// finished tells whether no container but sidecars will ever run again;
// ephemeral ones do not count.
func (w *worker) finished() bool {
	for _, c := range w.ctrs {
		if c.sidecar || c.ephemeral {
			continue
		}
		st := w.view(c)
		if c.init {
			if st.ended && st.code != 0 && !w.restarts(c, st.code) {
				return true // the Pod fails at its beginning
			}
			continue
		}
		if !st.ended || w.restarts(c, st.code) {
			return false
		}
	}
	return true
}

func (w *worker) deadline() (left time.Duration, limited bool) {
	if w.pod.Spec.ActiveDeadlineSeconds == nil {
		return 0, false
	}
	begin := time.Now()
	if w.sent != nil && w.sent.StartTime != nil {
		begin = w.sent.StartTime.Time
	}
	return time.Until(begin.Add(time.Duration(*w.pod.Spec.ActiveDeadlineSeconds) * time.Second)), true
}

// fail ends the Pod as a whole.
func (w *worker) fail(ctx context.Context, reason, message string) time.Duration {
	w.event(v1.EventTypeWarning, reason, "%s", message)
	w.podFailed, w.podMessage = reason, message
	w.stopAll(ctx, w.grace(), nil)
	if err := w.endAll(ctx); err != nil {
		return w.complain("FailedKillPod", err)
	}
	w.torn = true
	return forever
}

// complain reports an error and answers when to try again.
func (w *worker) complain(reason string, err error) time.Duration {
	w.event(v1.EventTypeWarning, reason, "%v", err)
	return 5 * time.Second
}

// endAll stops what still runs and takes the network away; logs and the record
// of how containers ended stay until the Pod is deleted.
func (w *worker) endAll(ctx context.Context) error {
	w.stopAll(ctx, w.grace(), nil)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.removeSandbox(ctx, w.sb); err != nil {
		return err
	}
	return w.vols.Teardown()
}

// ensureVolumes sets the volumes up, and refreshes them from time to time.
func (w *worker) ensureVolumes(ctx context.Context) error {
	if w.volumes != nil && (time.Now().Before(w.refreshAt) || !volumes.Changing(w.pod)) {
		return nil
	}
	if err := os.MkdirAll(w.logDir(), 0o755); err != nil {
		return err
	}
	vols, err := w.vols.Setup(ctx, w.pod)
	if err != nil {
		if w.volumes != nil { // they are there, only not the newest
			w.refreshAt = time.Now().Add(refreshVolumes / 4)
			return nil
		}
		return err
	}
	w.volumes, w.refreshAt = vols, time.Now().Add(refreshVolumes)
	return nil
}

// startOrBackOff starts a container, or answers how long it is to wait.
func (w *worker) startOrBackOff(ctx context.Context, c *container) time.Duration {
	w.mu.Lock()
	if c.exit != nil {
		ended := c.exit.FinishedAt
		if ended.Sub(c.backoffSince) > 2*maxBackoff {
			c.backoff = 0
		}
		if left := c.backoff - time.Since(ended); left > 0 {
			c.reason = "CrashLoopBackOff"
			c.message = fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", c.backoff, c.spec.Name, w.name, w.namespace, w.uid)
			first := c.backoffSince.Before(ended)
			if first {
				c.backoffSince = time.Now()
			}
			w.mu.Unlock()
			if first {
				w.containerEvent(c, v1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)", c.spec.Name, w.name, w.namespace, w.uid)
			}
			return left
		}
		c.backoff = min(max(2*c.backoff, firstBackoff), maxBackoff)
		c.backoffSince = time.Now()
	}
	w.mu.Unlock()
	return w.start(ctx, c)
}
