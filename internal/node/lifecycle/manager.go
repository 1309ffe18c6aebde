// Package lifecycle brings the Pods of one node to life and to an end.
//
// In goes a watch on the node's Pods, out come containers in a runtime, a Pod
// network each, and Pod statuses and events as kubectl users know them. Each
// Pod has a worker, a goroutine that does one thing after the other; nothing
// else starts or stops its containers. It talks to the API through client-go
// alone, and knows neither other nodes nor Services beyond their variables.
package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"fairway.dev/fairway/internal/node/network"
	"fairway.dev/fairway/internal/node/podspec"
	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/node/volumes"
)

// Config is what a Manager works with.
type Config struct {
	Node    string
	HostIPs []netip.Addr
	Net     Network
	// Dial connects from the node, for probes and hooks.
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	Client  kubernetes.Interface
	Objects *volumes.Objects
	// Services returns those of a namespace, for environment variables. It may
	// wait until they are known.
	Services func(ctx context.Context, namespace string) ([]*v1.Service, error)
	// RuntimeFor answers with the runtime for an image, or says why there is none.
	RuntimeFor func(image string) (runtime.Runtime, error)
	// Runtimes are all that may hold containers of this node, as of now.
	Runtimes func() []runtime.Runtime
	DNS      podspec.DNS
	// Allocatable is what Pods may have of the node, which the downward API tells
	// containers without limits.
	Allocatable v1.ResourceList
	// Unrouted returns when no data plane sends new connections to the Pod any
	// more, or when ctx ends. It may be nil.
	Unrouted func(ctx context.Context, pod *v1.Pod) error
	Dir      string // the Pods' files, one directory for each
	Recorder record.EventRecorder
	Logger   *slog.Logger
}

// Network is the node's, which connects its Pods; a *network.Node.
type Network interface {
	// NSName is the name of the node's network namespace, "" for the machine's.
	NSName() string
	AddPod(from string) (*network.Pod, error)
	AdoptPod(p network.Pod) (*network.Pod, error)
	RemovePod(p *network.Pod) error
	SetHostPorts(ports map[*network.Pod][]network.HostPort) error
}

// Manager runs the Pods of one node.
type Manager struct {
	cfg    Config
	synced chan struct{}

	mu        sync.Mutex
	pods      map[types.UID]*worker
	byName    map[types.NamespacedName]*worker
	hostPorts map[*network.Pod][]network.HostPort
	stopping  bool
	runCtx    context.Context // of Run
	wg        sync.WaitGroup
}

// New returns a Manager that does nothing yet.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, synced: make(chan struct{}), pods: map[types.UID]*worker{},
		byName: map[types.NamespacedName]*worker{}, hostPorts: map[*network.Pod][]network.HostPort{}}
}

// Run runs the node's Pods until ctx ends, and leaves them running then: the
// next Run with the same directory takes them over. It returns when every
// worker has stopped.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	m.runCtx = ctx
	m.mu.Unlock()
	known := map[string][]runtime.State{}
	for _, rt := range m.cfg.Runtimes() {
		states, err := rt.List(ctx, m.cfg.Node)
		if err != nil {
			m.cfg.Logger.Warn("cannot list containers", "runtime", rt.Scheme(), "err", err)
			continue
		}
		for _, s := range states {
			known[s.SandboxUID] = append(known[s.SandboxUID], s)
		}
	}
	lw := cache.NewListWatchFromClient(m.cfg.Client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll,
		fields.OneTermEqualSelector("spec.nodeName", m.cfg.Node))
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: lw, ObjectType: &v1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { m.update(ctx, o.(*v1.Pod), known) },
			UpdateFunc: func(_, o any) { m.update(ctx, o.(*v1.Pod), nil) },
			DeleteFunc: func(o any) {
				if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
					o = d.Obj
				}
				if pod, ok := o.(*v1.Pod); ok {
					m.gone(pod.UID)
				}
			},
		},
		Transform: func(o any) (any, error) {
			if pod, ok := o.(*v1.Pod); ok {
				pod.ManagedFields = nil // nobody here reads them
			}
			return o, nil
		},
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		informer.RunWithContext(ctx)
	}()
	if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		m.removeStrangers(ctx, known)
		close(m.synced)
	}
	<-ctx.Done()
	<-done
	m.mu.Lock()
	m.stopping = true
	m.mu.Unlock()
	m.wg.Wait()
	return nil
}

// Synced is closed when the node's Pods are known.
func (m *Manager) Synced() <-chan struct{} { return m.synced }

func (m *Manager) update(ctx context.Context, pod *v1.Pod, known map[string][]runtime.State) {
	m.mu.Lock()
	w := m.pods[pod.UID]
	if w == nil && !m.stopping {
		w = newWorker(m, pod, known[string(pod.UID)])
		m.pods[pod.UID] = w
		m.byName[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = w
		m.wg.Add(1)
		go func() {
			defer m.wg.Done()
			w.run(ctx)
		}()
	}
	m.mu.Unlock()
	if w != nil {
		w.set(pod)
	}
}

// gone tells the worker that the API has its Pod no more.
func (m *Manager) gone(uid types.UID) {
	m.mu.Lock()
	w := m.pods[uid]
	m.mu.Unlock()
	if w != nil {
		w.setGone()
	}
}

// forget drops a worker that has ended.
func (m *Manager) forget(w *worker) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, w.uid)
	key := types.NamespacedName{Namespace: w.namespace, Name: w.name}
	if m.byName[key] == w {
		delete(m.byName, key)
	}
}

// removeStrangers ends what is left of Pods that the API no longer has.
func (m *Manager) removeStrangers(ctx context.Context, known map[string][]runtime.State) {
	ents, _ := os.ReadDir(m.cfg.Dir)
	uids := map[string]bool{}
	for _, e := range ents {
		uids[e.Name()] = true
	}
	for uid := range known {
		uids[uid] = true
	}
	for uid := range uids {
		m.mu.Lock()
		w := m.pods[types.UID(uid)]
		m.mu.Unlock()
		if w != nil {
			continue
		}
		m.cfg.Logger.Info("removing what is left of a Pod", "node", m.cfg.Node, "uid", uid)
		if err := m.destroy(ctx, uid); err != nil {
			m.cfg.Logger.Warn("cannot remove what is left of a Pod", "uid", uid, "err", err)
		}
	}
}

// destroy removes a Pod's containers, network and files without ceremony.
func (m *Manager) destroy(ctx context.Context, uid string) error {
	dir := filepath.Join(m.cfg.Dir, uid)
	rec, err := readSandbox(dir)
	var errs []error
	if err == nil {
		for _, rt := range m.cfg.Runtimes() {
			if sb := rec.Sandboxes[rt.Scheme()]; sb != nil {
				errs = append(errs, rt.RemoveSandbox(ctx, sb))
			}
		}
		if rec.Net != nil {
			if p, err := m.cfg.Net.AdoptPod(*rec.Net); err == nil {
				errs = append(errs, m.cfg.Net.RemovePod(p))
			} else {
				errs = append(errs, m.cfg.Net.RemovePod(rec.Net))
			}
		}
	}
	errs = append(errs, volumes.Remove(filepath.Join(dir, "volumes")))
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// Destroy ends every Pod at once, as a power failure would, and tells nobody.
// Run must have returned.
func (m *Manager) Destroy(ctx context.Context) error {
	ents, _ := os.ReadDir(m.cfg.Dir)
	errs := make([]error, len(ents))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i, e := range ents {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			errs[i] = m.destroy(ctx, e.Name())
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Counts answers how many Pods there are, for the node's status.
func (m *Manager) Counts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pods)
}

// setHostPorts enters or (with none) removes the host ports of a Pod.
func (m *Manager) setHostPorts(p *network.Pod, ports []network.HostPort) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, had := m.hostPorts[p]; !had && len(ports) == 0 {
		return nil
	}
	if len(ports) == 0 {
		delete(m.hostPorts, p)
	} else {
		m.hostPorts[p] = ports
	}
	return m.cfg.Net.SetHostPorts(m.hostPorts)
}
