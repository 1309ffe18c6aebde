// Package cri runs containers through the CRI socket of containerd or CRI-O.
//
// In go sandboxes and containers (package runtime), out come calls to the
// daemon of the machine. Pods' networks stay Fairway's own: the daemon makes an
// empty network namespace for each sandbox, and the caller connects it, as it
// does all others. For that the daemon gets a network plugin that does nothing
// (see cni.go), and that is all this package changes on the machine.
package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	internalapi "k8s.io/cri-api/pkg/apis"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"

	"fairway.dev/fairway/internal/node/runtime"
)

// Sockets are the usual places of CRI sockets, in the order they are tried.
var Sockets = []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock"}

// Labels of what belongs to an instance of Fairway.
const (
	labelPrefix    = "fairway.dev/instance"
	labelNode      = "fairway.dev/node"
	labelUID       = "io.kubernetes.pod.uid"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelPod       = "io.kubernetes.pod.name"
	labelContainer = "io.kubernetes.container.name"
)

const (
	connectTimeout = 5 * time.Second
	callTimeout    = 2 * time.Minute
	// pollPeriod is how often containers that somebody waits for are looked at:
	// containerd 1.6 has no events.
	pollPeriod = 300 * time.Millisecond
)

// Config says which daemon, and for whom.
type Config struct {
	Socket string
	Prefix string // of the instance's names; labels what belongs to it
	Logger *slog.Logger
}

// Runtime implements runtime.Runtime.
type Runtime struct {
	cfg     Config
	rt      internalapi.RuntimeService
	images  internalapi.ImageManagerService
	name    string // "containerd"
	version string

	mu      sync.Mutex
	waiting map[string][]chan runtime.State // by ID without the scheme
	polling bool
	stop    context.CancelFunc
	life    context.Context
}

var _ runtime.Runtime = (*Runtime)(nil)

// Find returns the first usual socket that somebody listens on, "" for none.
func Find() string {
	for _, s := range Sockets {
		if c, err := net.DialTimeout("unix", s, time.Second); err == nil {
			c.Close()
			return s
		}
	}
	return ""
}

// Connect connects to a daemon and prepares it.
func Connect(ctx context.Context, cfg Config) (*Runtime, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	endpoint := "unix://" + cfg.Socket
	rt, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(connectTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Socket, err)
	}
	images, err := remote.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(connectTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Socket, err)
	}
	v, err := rt.Version(ctx, "v1")
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", cfg.Socket, err)
	}
	r := &Runtime{cfg: cfg, rt: rt, images: images, name: v.RuntimeName, version: v.RuntimeVersion, waiting: map[string][]chan runtime.State{}}
	r.life, r.stop = context.WithCancel(context.Background())
	return r, nil
}

// Close lets go of the daemon; containers run on.
func (r *Runtime) Close() error {
	r.stop()
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	return errors.Join(r.rt.Close(ctx), r.images.Close(ctx))
}

// Version is the daemon's, as a Node's status has it.
func (r *Runtime) Version() string { return r.name + "://" + r.version }

// Scheme implements runtime.Runtime.
func (r *Runtime) Scheme() string { return r.name }

func (r *Runtime) bare(id string) string {
	_, rest, ok := strings.Cut(id, "://")
	if !ok {
		return id
	}
	return rest
}

// CreateSandbox implements runtime.Runtime.
func (r *Runtime) CreateSandbox(ctx context.Context, s *runtime.Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	machine := s.HostNetwork && s.JoinNetNS == ""
	if !machine {
		if err := r.ensureCNI(ctx); err != nil {
			return err
		}
	}
	if s.JoinNetNS != "" {
		return r.createJoined(ctx, s)
	}
	id, err := r.rt.RunPodSandbox(ctx, r.config(s), "")
	if err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	s.ID = id
	if machine {
		return nil
	}
	if s.NetNSPath, err = r.netns(ctx, id); err != nil {
		return errors.Join(err, r.removeSandbox(context.WithoutCancel(ctx), id))
	}
	return nil
}

// netns asks where the sandbox's network namespace is: in the OCI spec that
// the daemon reports for it.
func (r *Runtime) netns(ctx context.Context, id string) (string, error) {
	st, err := r.rt.PodSandboxStatus(ctx, id, true)
	if err != nil {
		return "", fmt.Errorf("%s: %w", r.name, err)
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(st.Info["info"]), &info); err != nil {
		return "", fmt.Errorf("%s: what it says of sandbox %s cannot be read: %w", r.name, id, err)
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" && ns.Path != "" {
			return ns.Path, nil
		}
	}
	return "", fmt.Errorf("%s: does not say where the network namespace of sandbox %s is", r.name, id)
}

// RemoveSandbox implements runtime.Runtime.
func (r *Runtime) RemoveSandbox(ctx context.Context, s *runtime.Sandbox) error {
	if s.ID == "" {
		return nil
	}
	var err error
	if s.JoinNetNS != "" {
		err = r.removeJoined(ctx, s)
	} else {
		err = r.removeSandbox(ctx, s.ID)
	}
	removeCgroups(r.cfg.Prefix + "-cri/" + s.UID)
	return err
}

func (r *Runtime) removeSandbox(ctx context.Context, id string) error {
	if err := r.rt.StopPodSandbox(ctx, id); err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	if err := r.rt.RemovePodSandbox(ctx, id); err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	return nil
}

// Start implements runtime.Runtime.
func (r *Runtime) Start(ctx context.Context, s *runtime.Sandbox, c *runtime.Container) (runtime.State, error) {
	cfg, err := r.containerConfig(s, c)
	if err != nil {
		return runtime.State{}, err
	}
	id, err := r.rt.CreateContainer(ctx, s.ID, cfg, r.config(s))
	if err != nil {
		return runtime.State{}, fmt.Errorf("%s: %w", r.name, err)
	}
	if err := r.rt.StartContainer(ctx, id); err != nil {
		r.rt.RemoveContainer(context.WithoutCancel(ctx), id) //nolint:errcheck // the first error says more
		return runtime.State{}, fmt.Errorf("%s: %w", r.name, err)
	}
	st, err := r.state(ctx, id)
	if err != nil {
		return runtime.State{}, err
	}
	if c.NonRoot && st.User != nil && st.User.UID == 0 {
		r.Stop(ctx, st.ID, 0, 0) //nolint:errcheck
		return st, errors.New("container has runAsNonRoot and image will run as root")
	}
	return st, nil
}

// state asks the daemon how a container is.
func (r *Runtime) state(ctx context.Context, id string) (runtime.State, error) {
	resp, err := r.rt.ContainerStatus(ctx, id, false)
	if err != nil {
		return runtime.State{}, fmt.Errorf("%s: %w", r.name, err)
	}
	st := resp.GetStatus()
	out := runtime.State{ID: r.name + "://" + id, SandboxUID: st.Labels[labelUID], Name: st.GetMetadata().GetName(), Attempt: st.GetMetadata().GetAttempt(),
		Running: st.State == api.ContainerState_CONTAINER_RUNNING, StartedAt: time.Unix(0, st.StartedAt), ExitCode: int(st.ExitCode),
		OOMKilled: st.Reason == "OOMKilled", Image: st.GetImage().GetImage(), Digest: st.ImageRef}
	if !out.Running {
		out.FinishedAt = time.Unix(0, st.FinishedAt)
		if st.FinishedAt == 0 {
			out.FinishedAt = time.Now()
		}
		out.Unknown = st.State == api.ContainerState_CONTAINER_UNKNOWN
	}
	if u := st.GetUser().GetLinux(); u != nil {
		out.User = &runtime.UserInfo{UID: u.Uid, GID: u.Gid, Groups: u.SupplementalGroups}
	}
	return out, nil
}

// List implements runtime.Runtime.
func (r *Runtime) List(ctx context.Context, node string) ([]runtime.State, error) {
	list, err := r.rt.ListContainers(ctx, &api.ContainerFilter{LabelSelector: map[string]string{labelPrefix: r.cfg.Prefix, labelNode: node}})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.name, err)
	}
	var out []runtime.State
	for _, c := range list {
		if st, err := r.state(ctx, c.Id); err == nil {
			out = append(out, st)
		}
	}
	return out, nil
}

// Signal implements runtime.Runtime. The CRI knows no signal but the end.
func (r *Runtime) Signal(ctx context.Context, id string, sig unix.Signal) error {
	if sig != unix.SIGKILL {
		return fmt.Errorf("%s: cannot send signal %v: the CRI has no way to", r.name, sig)
	}
	return r.stopFor(ctx, id, 0)
}

// Stop implements runtime.Runtime; the signal is the image's.
func (r *Runtime) Stop(ctx context.Context, id string, _ unix.Signal, grace time.Duration) error {
	if err := r.stopFor(ctx, id, int64((grace+time.Second-1)/time.Second)); err != nil {
		return err
	}
	r.look() // whoever waits for it need not wait for the next round
	return nil
}

func (r *Runtime) stopFor(ctx context.Context, id string, seconds int64) error {
	if err := r.rt.StopContainer(ctx, r.bare(id), seconds); err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	return nil
}

// Remove implements runtime.Runtime.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if err := r.rt.RemoveContainer(ctx, r.bare(id)); err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	return nil
}

// Cleanup removes every sandbox of an instance, and what ensureCNI has written
// if no other instance uses it.
func Cleanup(ctx context.Context, cfg Config) error {
	r, err := Connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer r.Close()
	list, err := r.rt.ListPodSandbox(ctx, &api.PodSandboxFilter{})
	if err != nil {
		return err
	}
	var errs []error
	others := false
	for _, s := range list {
		switch s.Labels[labelPrefix] {
		case cfg.Prefix:
			errs = append(errs, r.removeSandbox(ctx, s.Id))
		case "":
		default:
			others = true
		}
	}
	removeCgroups(cfg.Prefix + "-cri")
	if !others {
		errs = append(errs, r.removeCNI(ctx))
	}
	return errors.Join(errs...)
}

// removeCgroups removes empty groups of that name in every hierarchy.
func removeCgroups(path string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + path)
	if _, err := os.Stat("/sys/fs/cgroup/" + path); err == nil {
		roots = append(roots, "/sys/fs/cgroup/"+path)
	}
	for _, root := range roots {
		var dirs []string
		filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error { //nolint:errcheck
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			unix.Rmdir(dirs[i]) //nolint:errcheck // somebody is in it
		}
	}
}
