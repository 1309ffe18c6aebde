package lifecycle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/node/volumes"
)

// worker runs one Pod. What its goroutine alone uses is not guarded; what
// others see or set is guarded by mu.
type worker struct {
	m               *Manager
	uid             types.UID
	namespace, name string
	dir             string
	wake            chan struct{} // capacity 1
	vols            *volumes.Volumes
	states          []runtime.State // what runs already, from an earlier process

	// The goroutine's own.
	pod        *v1.Pod // as it was when this round began
	attempt    uint32
	volumes    map[string]volumes.Volume
	volumeErr  string
	refreshAt  time.Time
	sent       *v1.PodStatus // as the API has it, as far as we know
	backoffSB  time.Duration
	podFailed  string // reason for which the Pod as a whole failed, such as DeadlineExceeded
	podMessage string
	torn       bool // containers have all ended for good, the network is gone

	mu        sync.Mutex
	next      *v1.Pod // the newest
	isGone    bool
	interrupt context.CancelFunc // ends the round under way
	ctrs      []*container
	sb        *sandboxRecord
}

// container is one of the Pod's, through all its attempts. Fields are guarded
// by the worker's mu.
type container struct {
	spec      *v1.Container // a copy: its image may change
	init      bool
	sidecar   bool
	ephemeral bool   // added to the running Pod (`kubectl debug`), see ephemeral.go
	target    string // whose processes an ephemeral one is to see, "" for none

	rt       runtime.Runtime
	id       string // of the latest attempt, "" before the first
	attempt  uint32
	running  bool
	began    time.Time
	exit     *runtime.State // how the latest attempt ended
	last     *v1.ContainerStateTerminated
	restarts int32

	reason, message string // why it waits
	started, ready  bool
	backoff         time.Duration
	backoffSince    time.Time
	image           time.Duration // back-off for image pulls
	imageAt         time.Time
	kill            string // why the running attempt must end
	doomed          bool   // is being stopped for good
	again           bool   // is to be started again whatever the restart policy
	stopProbes      context.CancelFunc
	logs            []string // paths, newest last
	user            *runtime.UserInfo
	imageRef        string
}

func newWorker(m *Manager, pod *v1.Pod, states []runtime.State) *worker {
	w := &worker{m: m, uid: pod.UID, namespace: pod.Namespace, name: pod.Name, dir: filepath.Join(m.cfg.Dir, string(pod.UID)),
		wake: make(chan struct{}, 1), next: pod, states: states}
	w.vols = volumes.New(filepath.Join(w.dir, "volumes"), m.cfg.Objects, m.cfg.Allocatable)
	each(pod, func(c *v1.Container, init bool) {
		w.ctrs = append(w.ctrs, &container{spec: c.DeepCopy(), init: init, sidecar: init && isSidecar(c)})
	})
	return w
}

// main tells whether it is one of those that the Pod is there for.
func (c *container) main() bool { return !c.init && !c.ephemeral }

// each calls f for init containers and then for the others.
func each(pod *v1.Pod, f func(c *v1.Container, init bool)) {
	for i := range pod.Spec.InitContainers {
		f(&pod.Spec.InitContainers[i], true)
	}
	for i := range pod.Spec.Containers {
		f(&pod.Spec.Containers[i], false)
	}
}

func isSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

func (w *worker) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

func (w *worker) logDir() string { return w.path("logs") }

func (w *worker) logPath(name string, attempt uint32) string {
	return filepath.Join(w.logDir(), name, fmt.Sprintf("%d.log", attempt))
}

// poke starts a new round soon.
func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// set gives the worker a newer Pod.
func (w *worker) set(pod *v1.Pod) {
	w.mu.Lock()
	w.next = pod
	if pod.DeletionTimestamp != nil && w.interrupt != nil {
		w.interrupt()
	}
	w.mu.Unlock()
	w.poke()
}

func (w *worker) setGone() {
	w.mu.Lock()
	w.isGone = true
	if w.interrupt != nil {
		w.interrupt()
	}
	w.mu.Unlock()
	w.poke()
}

// run is the worker's life.
func (w *worker) run(ctx context.Context) {
	if err := os.MkdirAll(w.logDir(), 0o755); err != nil {
		w.m.cfg.Logger.Error("cannot make a Pod's directory", "pod", w.name, "err", err)
	}
	w.mu.Lock()
	w.pod = w.next
	w.takeEphemeral()
	w.mu.Unlock()
	w.restore(ctx)
	for ctx.Err() == nil {
		round, cancel := context.WithCancel(ctx)
		w.mu.Lock()
		w.pod = w.next
		w.takeEphemeral()
		w.takeImages()
		gone := w.isGone
		ending := gone || w.pod.DeletionTimestamp != nil
		w.interrupt = cancel
		w.mu.Unlock()
		if ending {
			cancel()
			w.terminate(ctx, gone)
			if ctx.Err() == nil {
				w.m.forget(w)
			}
			return
		}
		wait := w.sync(round)
		if round.Err() == nil || ctx.Err() == nil {
			wait = min(wait, w.report(ctx))
		}
		w.mu.Lock()
		w.interrupt = nil
		w.mu.Unlock()
		cancel()
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-t.C:
		}
		t.Stop()
	}
	// The process goes, the containers stay.
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.ctrs {
		if c.stopProbes != nil {
			c.stopProbes()
		}
	}
}

// restore takes up what an earlier process, or the API, knows of the Pod.
func (w *worker) restore(ctx context.Context) {
	w.sent = w.pod.Status.DeepCopy()
	statuses := slices.Concat(w.pod.Status.InitContainerStatuses, w.pod.Status.ContainerStatuses, w.pod.Status.EphemeralContainerStatuses)
	adopted := w.adoptSandbox() == nil
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.ctrs {
		c.logs = w.oldLogs(c.spec.Name)
		if i := slices.IndexFunc(statuses, func(s v1.ContainerStatus) bool { return s.Name == c.spec.Name }); i >= 0 {
			s := statuses[i]
			c.restarts = s.RestartCount
			c.last = s.LastTerminationState.Terminated
			if t := s.State.Terminated; t != nil {
				c.id, c.attempt = t.ContainerID, uint32(s.RestartCount)
				c.began = t.StartedAt.Time
				c.exit = &runtime.State{ID: t.ContainerID, ExitCode: int(t.ExitCode), StartedAt: t.StartedAt.Time, FinishedAt: t.FinishedAt.Time}
			} else if s.State.Running != nil {
				c.id, c.attempt = s.ContainerID, uint32(s.RestartCount)
				c.began = s.State.Running.StartedAt.Time
				// Unless the runtime knows better, nobody saw it end.
				c.exit = &runtime.State{ID: s.ContainerID, ExitCode: 137, Unknown: true, StartedAt: c.began, FinishedAt: time.Now()}
			}
		}
		for _, st := range w.states {
			if st.Name != c.spec.Name || c.id != "" && st.Attempt < c.attempt {
				continue
			}
			rt := w.m.runtimeOf(st.ID)
			if rt == nil {
				continue
			}
			c.rt, c.id, c.attempt, c.began, c.user, c.imageRef = rt, st.ID, st.Attempt, st.StartedAt, st.User, st.Digest
			c.restarts = max(c.restarts, int32(st.Attempt))
			c.exit, c.running = nil, false
			if !st.Running {
				s := st
				c.exit = &s
				continue
			}
			if !adopted {
				continue // its network has gone; a new attempt follows
			}
			c.running = true
			if i := slices.IndexFunc(statuses, func(s v1.ContainerStatus) bool { return s.Name == c.spec.Name }); i >= 0 {
				c.started, c.ready = statuses[i].Started != nil && *statuses[i].Started, statuses[i].Ready
				if image := statuses[i].Image; image != c.spec.Image && (c.main() || c.sidecar) {
					c.kill, c.again = imageChanged, true // while no process was there to see
				}
			}
			w.follow(ctx, c)
		}
		if c.ephemeral && c.id != "" && !c.running && c.exit == nil {
			// Its network has gone, and it is not started again.
			c.exit = &runtime.State{ID: c.id, ExitCode: 137, Unknown: true, StartedAt: c.began, FinishedAt: time.Now()}
		}
	}
	w.states = nil
}

// oldLogs are the logs that a container has, the newest last.
func (w *worker) oldLogs(name string) []string {
	ents, _ := os.ReadDir(filepath.Join(w.logDir(), name))
	var attempts []int
	for _, e := range ents {
		if n, err := strconv.Atoi(strings.TrimSuffix(e.Name(), ".log")); err == nil {
			attempts = append(attempts, n)
		}
	}
	slices.Sort(attempts)
	var out []string
	for _, n := range attempts {
		out = append(out, w.logPath(name, uint32(n)))
	}
	return out
}

// follow waits for the end of the running attempt and begins its probes. The
// caller holds w.mu.
func (w *worker) follow(ctx context.Context, c *container) {
	id, rt := c.id, c.rt
	probes, cancel := context.WithCancel(ctx)
	c.stopProbes = cancel
	go func() {
		st, err := rt.Wait(ctx, id)
		if ctx.Err() != nil {
			return // we go, it stays
		}
		cancel()
		w.mu.Lock()
		if c.id == id {
			c.running, c.ready, c.started = false, false, false
			if err != nil {
				st = runtime.State{ID: id, ExitCode: 137, Unknown: true, StartedAt: c.began, FinishedAt: time.Now()}
			}
			c.exit = &st
		}
		w.mu.Unlock()
		w.poke()
	}()
	w.probe(probes, c)
}

// event records one about the Pod.
func (w *worker) event(kind, reason, format string, args ...any) {
	w.m.cfg.Recorder.Eventf(w.pod, kind, reason, format, args...)
}

// containerEvent records one about a container, as upstream's kubelet words its place.
func (w *worker) containerEvent(c *container, kind, reason, format string, args ...any) {
	field := "spec.containers{" + c.spec.Name + "}"
	switch {
	case c.init:
		field = "spec.initContainers{" + c.spec.Name + "}"
	case c.ephemeral:
		field = "spec.ephemeralContainers{" + c.spec.Name + "}"
	}
	ref := &v1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: w.namespace, Name: w.name, UID: w.uid,
		ResourceVersion: w.pod.ResourceVersion, FieldPath: field}
	w.m.cfg.Recorder.Eventf(ref, kind, reason, format, args...)
}
