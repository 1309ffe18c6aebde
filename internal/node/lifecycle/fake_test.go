package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"fairway.dev/fairway/internal/node/network"
	"fairway.dev/fairway/internal/node/podspec"
	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/node/volumes"
)

// bench runs Pods on a runtime and a network that exist in memory only, and so
// in no time: its tests run in a synctest bubble.
type bench struct {
	t      *testing.T
	m      *Manager
	rt     *fakeRuntime
	client *fake.Clientset
	events *record.FakeRecorder
	stop   func()
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, rt: &fakeRuntime{running: map[string]*fakeContainer{}}, client: fake.NewClientset(), events: record.NewFakeRecorder(1000)}
	objects := volumes.NewObjects(b.client, time.Minute)
	b.m = New(Config{Node: "node-1", HostIPs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}, Net: fakeNetwork{}, Client: b.client, Objects: objects,
		Dial:     func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no network here") },
		Services: func(context.Context, string) ([]*v1.Service, error) { return nil, nil },
		RuntimeFor: func(image string) (runtime.Runtime, error) {
			if !strings.HasPrefix(image, "host") {
				return nil, errors.New("no runtime for images")
			}
			return b.rt, nil
		},
		Runtimes: func() []runtime.Runtime { return []runtime.Runtime{b.rt} },
		DNS:      podspec.DNS{HostFile: "/dev/null"}, Dir: t.TempDir(), Recorder: b.events, Logger: slog.New(slog.DiscardHandler)})
	b.start()
	return b
}

// start begins to run Pods, again after stop.
func (b *bench) start() {
	ctx, cancel := context.WithCancel(context.Background())
	b.m.runCtx = ctx
	b.stop = func() { cancel(); b.m.wg.Wait() }
}

// restart is the end of one process and the beginning of the next.
func (b *bench) restart(meanwhile func()) {
	b.stop()
	meanwhile()
	b.m = New(b.m.cfg)
	b.start()
}

// pod creates a Pod and begins to run it. Containers without an image get host.
func (b *bench) pod(name string, spec v1.PodSpec) *v1.Pod {
	b.t.Helper()
	for _, list := range [][]v1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if list[i].Image == "" {
				list[i].Image = "host"
			}
		}
	}
	if spec.RestartPolicy == "" {
		spec.RestartPolicy = v1.RestartPolicyAlways
	}
	p, err := b.client.CoreV1().Pods("ns").Create(b.t.Context(), &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID("uid-" + name)}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.tell(p)
	return p
}

// tell tells the Manager of a Pod, as a watch would, and waits until all there
// is to do is done.
func (b *bench) tell(p *v1.Pod) {
	states, _ := b.rt.List(b.t.Context(), "node-1")
	b.m.update(b.m.runCtx, p, map[string][]runtime.State{string(p.UID): states})
	synctest.Wait()
}

// get is the Pod as the API has it, nil if it has gone.
func (b *bench) get(name string) *v1.Pod {
	p, err := b.client.CoreV1().Pods("ns").Get(b.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return p
}

// seen are the events so far.
func (b *bench) seen() (out []string) {
	for {
		select {
		case e := <-b.events.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}

// inBubble runs f in fake time, and stops what it has started.
func inBubble(t *testing.T, f func(t *testing.T, b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		f(t, b)
		b.stop()
	})
}

type fakeNetwork struct{}

func (fakeNetwork) NSName() string { return "fw-node-1" }
func (fakeNetwork) AddPod(string) (*network.Pod, error) {
	return &network.Pod{NSName: "fw-p", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}, nil
}
func (fakeNetwork) AdoptPod(p network.Pod) (*network.Pod, error)                 { return &p, nil }
func (fakeNetwork) RemovePod(*network.Pod) error                                 { return nil }
func (fakeNetwork) SetHostPorts(map[*network.Pod][]network.HostPort) (err error) { return nil }

// fakeRuntime remembers what it was asked to do.
type fakeRuntime struct {
	mu      sync.Mutex
	calls   []string // "start c", "stop c", "sandbox", …
	serial  int
	running map[string]*fakeContainer // by ID
	// stubborn containers ignore Stop until the end of their grace period.
	stubborn map[string]bool
	specs    []*runtime.Container
}

type fakeContainer struct {
	state runtime.State
	done  chan struct{}
}

func (f *fakeRuntime) note(format string, args ...any) {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

// said are the calls since the last time.
func (f *fakeRuntime) said() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := strings.Join(f.calls, ", ")
	f.calls = nil
	return out
}

// end ends the running container of that name.
func (f *fakeRuntime) end(name string, code int) {
	f.mu.Lock()
	for _, c := range f.running {
		if c.state.Name == name && c.state.Running {
			f.endLocked(c, code)
		}
	}
	f.mu.Unlock()
	synctest.Wait()
}

func (f *fakeRuntime) endLocked(c *fakeContainer, code int) {
	if c.state.Running {
		c.state.Running, c.state.ExitCode, c.state.FinishedAt = false, code, time.Now()
		close(c.done)
	}
}

func (f *fakeRuntime) Scheme() string { return "fake" }

func (f *fakeRuntime) CreateSandbox(_ context.Context, s *runtime.Sandbox) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note("sandbox")
	s.ID = "sb-" + s.UID
	return nil
}

func (f *fakeRuntime) RemoveSandbox(_ context.Context, s *runtime.Sandbox) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note("remove sandbox")
	for _, c := range f.running {
		if c.state.SandboxUID == s.UID {
			f.endLocked(c, 137)
		}
	}
	return nil
}

func (f *fakeRuntime) EnsureImage(_ context.Context, _ *runtime.Sandbox, image, _ string, _ []runtime.Auth) (string, error) {
	return image, nil
}

func (f *fakeRuntime) Start(_ context.Context, s *runtime.Sandbox, c *runtime.Container) (runtime.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.specs = append(f.specs, c)
	if len(c.Command) > 0 && c.Command[0] == "/no/such/command" {
		f.note("cannot start %s", c.Name)
		return runtime.State{}, errors.New("executable file not found")
	}
	f.note("start %s%s", c.Name, strings.TrimPrefix(c.Image, "host"))
	f.serial++
	st := runtime.State{ID: fmt.Sprintf("fake://%d", f.serial), SandboxUID: s.UID, Name: c.Name, Attempt: c.Attempt, Running: true, StartedAt: time.Now()}
	f.running[st.ID] = &fakeContainer{state: st, done: make(chan struct{})}
	return st, nil
}

func (f *fakeRuntime) List(context.Context, string) (out []runtime.State, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.running {
		out = append(out, c.state)
	}
	slices.SortFunc(out, func(a, b runtime.State) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

func (f *fakeRuntime) Wait(ctx context.Context, id string) (runtime.State, error) {
	f.mu.Lock()
	c := f.running[id]
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.state, nil
	case <-ctx.Done():
		return runtime.State{}, ctx.Err()
	}
}

func (f *fakeRuntime) Signal(_ context.Context, id string, sig unix.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note("signal %s %d", f.running[id].state.Name, sig)
	if sig == unix.SIGKILL {
		f.endLocked(f.running[id], 137)
	}
	return nil
}

func (f *fakeRuntime) Stop(_ context.Context, id string, sig unix.Signal, grace time.Duration) error {
	f.mu.Lock()
	c := f.running[id]
	f.note("stop %s %v", c.state.Name, grace.Round(time.Second))
	stubborn := f.stubborn[c.state.Name]
	f.mu.Unlock()
	code := 143
	if stubborn {
		select {
		case <-c.done:
		case <-time.After(grace):
			code = 137
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(c, code)
	return nil
}

func (f *fakeRuntime) Remove(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.running, id)
	return nil
}

func (f *fakeRuntime) Exec(_ context.Context, id string, cmd []string, _ runtime.Streams) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note("exec %s %s", f.running[id].state.Name, strings.Join(cmd, " "))
	return 0, nil
}

func (f *fakeRuntime) Attach(context.Context, string, runtime.Streams) error { return nil }
