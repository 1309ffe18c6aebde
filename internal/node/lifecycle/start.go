package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/node/podspec"
	"fairway.dev/fairway/internal/node/probe"
	"fairway.dev/fairway/internal/node/runtime"
)

// waiting notes why a container does not run, and says so in an event if that
// is news.
func (w *worker) waiting(c *container, reason string, err error) {
	w.mu.Lock()
	news := c.reason != reason || c.message != err.Error()
	c.reason, c.message = reason, err.Error()
	w.mu.Unlock()
	if news {
		w.containerEvent(c, v1.EventTypeWarning, "Failed", "Error: %v", err)
	}
}

// start starts the next attempt of a container. It answers when to try again
// if that failed.
func (w *worker) start(ctx context.Context, c *container) time.Duration {
	const retry = 2 * time.Second
	cfg := &w.m.cfg
	rt, err := cfg.RuntimeFor(c.spec.Image)
	if err != nil {
		w.waiting(c, "CreateContainerError", err)
		return 10 * time.Second
	}
	sb := w.sb.Sandboxes[rt.Scheme()]
	if sb == nil {
		// An ephemeral container's runtime is another than the Pod's, or it has
		// come up since the sandbox was made.
		if sb, err = w.addSandbox(ctx, rt); err != nil {
			if ctx.Err() == nil {
				w.waiting(c, "CreateContainerError", err)
			}
			return 10 * time.Second
		}
	}
	ref, wait := w.pull(ctx, c, rt, sb)
	if wait > 0 {
		return wait
	}
	services, err := cfg.Services(ctx, w.namespace)
	if err != nil {
		w.waiting(c, "CreateContainerConfigError", err)
		return retry
	}
	attempt := uint32(0)
	var ended *v1.ContainerStateTerminated // the attempt before, with its last words
	w.mu.Lock()
	if c.id != "" {
		attempt = max(c.attempt+1, uint32(c.restarts)+1)
	}
	if c.exit != nil {
		ended = terminated(c, w.termMessage(c))
	}
	w.mu.Unlock()
	term := w.path("termination-log-" + c.spec.Name)
	os.Remove(term) //nolint:errcheck // of the attempt before
	if err = writeFile(term, nil); err == nil {
		err = os.Chmod(term, 0o666)
	}
	if err != nil {
		w.waiting(c, "CreateContainerError", err)
		return retry
	}
	spec, err := podspec.Build(ctx, w.pod, c.spec, podspec.Facts{NodeName: cfg.Node, HostIPs: cfg.HostIPs, PodIPs: w.ips(),
		Services: services, Objects: cfg.Objects, Allocatable: cfg.Allocatable}, w.volumes, podspec.Files{Hosts: w.path("etc-hosts"), ResolvConf: w.path("resolv.conf"), TerminationLog: term})
	if err != nil {
		if ctx.Err() == nil {
			w.waiting(c, "CreateContainerConfigError", err)
		}
		return retry
	}
	spec.Attempt, spec.LogPath, spec.ImageRef = attempt, w.logPath(c.spec.Name, attempt), ref
	if spec.SeeProcesses, err = w.targetID(c); err != nil {
		w.waiting(c, "CreateContainerConfigError", err)
		return retry
	}
	if err := os.MkdirAll(filepath.Dir(spec.LogPath), 0o755); err != nil {
		w.waiting(c, "CreateContainerError", err)
		return retry
	}
	w.mu.Lock()
	old, oldRT := c.id, c.rt
	w.mu.Unlock()
	if old != "" && oldRT != nil {
		if err := oldRT.Remove(ctx, old); err != nil {
			cfg.Logger.Debug("cannot remove an ended container", "pod", w.name, "container", c.spec.Name, "err", err)
		}
	}
	st, err := rt.Start(ctx, sb, spec)
	if err != nil {
		if ctx.Err() != nil {
			return retry
		}
		return w.startFailed(c, rt, attempt, ended, err)
	}
	w.mu.Lock()
	if ended != nil {
		c.last = ended
	}
	if c.id != "" {
		c.restarts = max(c.restarts+1, int32(attempt))
	}
	c.rt, c.id, c.attempt, c.running, c.began, c.exit = rt, st.ID, attempt, true, st.StartedAt, nil
	c.reason, c.message, c.kill, c.again = "", "", "", false
	c.user, c.imageRef = st.User, st.Digest
	c.started, c.ready = c.spec.StartupProbe == nil, false
	if c.started && c.spec.ReadinessProbe == nil {
		c.ready = true
	}
	c.logs = append(c.logs, spec.LogPath)
	for len(c.logs) > 2 { // this one and the one before
		removeLog(c.logs[0])
		c.logs = c.logs[1:]
	}
	hooked := c.spec.Lifecycle != nil && c.spec.Lifecycle.PostStart != nil
	if hooked {
		c.ready, c.started = false, false
	} else {
		w.follow(w.m.life(), c)
	}
	w.mu.Unlock()
	w.containerEvent(c, v1.EventTypeNormal, "Started", "Container started")
	if hooked {
		w.postStart(ctx, c)
	}
	return forever
}

// startFailed counts an attempt that has not come to life as one that failed.
func (w *worker) startFailed(c *container, rt runtime.Runtime, attempt uint32, ended *v1.ContainerStateTerminated, err error) time.Duration {
	w.mu.Lock()
	if ended != nil {
		c.last = ended
	}
	if c.id != "" {
		c.restarts = max(c.restarts+1, int32(attempt))
	}
	now := time.Now()
	c.id, c.rt, c.attempt, c.running = rt.Scheme()+"://never-started", rt, attempt, false
	c.exit = &runtime.State{ID: c.id, ExitCode: 128, StartedAt: time.Time{}, FinishedAt: now}
	if errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "executable file not found") {
		c.exit.ExitCode = 127
	}
	w.mu.Unlock()
	w.waiting(c, "RunContainerError", err)
	w.mu.Lock()
	c.message = err.Error()
	w.mu.Unlock()
	w.poke()
	return forever
}

// pull makes the image present. A wait above zero says that it is not.
func (w *worker) pull(ctx context.Context, c *container, rt runtime.Runtime, sb *runtime.Sandbox) (ref string, wait time.Duration) {
	w.mu.Lock()
	if left := c.image - time.Since(c.imageAt); c.image > 0 && left > 0 {
		c.reason = "ImagePullBackOff"
		c.message = fmt.Sprintf("Back-off pulling image %q: %s", c.spec.Image, strings.TrimPrefix(c.message, fmt.Sprintf("Back-off pulling image %q: ", c.spec.Image)))
		w.mu.Unlock()
		return "", left
	}
	w.mu.Unlock()
	auths, err := w.pullSecrets(ctx)
	if err == nil {
		begin := time.Now()
		ref, err = rt.EnsureImage(ctx, sb, c.spec.Image, string(c.spec.ImagePullPolicy), auths)
		if err == nil {
			if took := time.Since(begin); took > 200*time.Millisecond {
				w.containerEvent(c, v1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %v", c.spec.Image, took.Round(time.Millisecond))
			} else if rt.Scheme() != "process" {
				w.containerEvent(c, v1.EventTypeNormal, "Pulled", "Container image %q already present on machine", c.spec.Image)
			}
			c.image = 0
			return ref, 0
		}
	}
	if ctx.Err() != nil {
		return "", time.Second
	}
	reason := "ErrImagePull"
	var ie *runtime.ImageError
	if errors.As(err, &ie) && ie.Reason != "" {
		reason = ie.Reason
	}
	w.waiting(c, reason, err)
	c.image, c.imageAt = min(max(2*c.image, firstBackoff), maxBackoff), time.Now()
	return "", time.Second // then the status turns to ImagePullBackOff
}

// postStart runs the hook; if it fails the container is ended.
func (w *worker) postStart(ctx context.Context, c *container) {
	err := w.hook(ctx, c, c.spec.Lifecycle.PostStart)
	w.mu.Lock()
	if err == nil {
		c.started = c.spec.StartupProbe == nil
		c.ready = c.started && c.spec.ReadinessProbe == nil
	}
	w.follow(w.m.life(), c)
	if err != nil && ctx.Err() == nil {
		c.kill = "FailedPostStartHook"
	}
	w.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		w.containerEvent(c, v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v", err)
		w.poke()
	}
}

// hook runs a lifecycle handler to its end.
func (w *worker) hook(ctx context.Context, c *container, h *v1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		code, out, err := w.execOutput(ctx, c, h.Exec.Command)
		if err == nil && code != 0 {
			err = fmt.Errorf("command %q exited with %d: %s", h.Exec.Command, code, strings.TrimSpace(out))
		}
		return err
	case h.HTTPGet != nil:
		ok, msg := probe.Once(ctx, v1.ProbeHandler{HTTPGet: h.HTTPGet}, 30*time.Second, w.target(c))
		if !ok {
			return errors.New(msg)
		}
	case h.TCPSocket != nil:
		ok, msg := probe.Once(ctx, v1.ProbeHandler{TCPSocket: h.TCPSocket}, 30*time.Second, w.target(c))
		if !ok {
			return errors.New(msg)
		}
	case h.Sleep != nil:
		t := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func removeLog(path string) {
	os.Remove(path) //nolint:errcheck // it may be gone
	aside, _ := filepath.Glob(path + ".*")
	for _, p := range aside {
		os.Remove(p) //nolint:errcheck
	}
}
