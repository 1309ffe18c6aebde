// Package process runs containers as plain processes of the machine's own file
// system: the embedded default, for containers whose image is "host".
//
// In go sandboxes and containers (package runtime), out come processes in the
// Pod's network namespace, each in a mount namespace of its own that carries
// its volumes. There is no image, no daemon and no process between Fairway and
// the command: a locked thread prepares the namespaces and starts the command
// from within them. Processes outlive Fairway: their output goes to named pipes
// that they themselves hold open, so that they neither notice nor lose anything
// but time while nobody reads; the next Fairway finds them by their records.
//
// It writes below its state directory, in control groups below its name, and
// makes mount points that the machine lacks (recorded, and removed by Cleanup).
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/node/cgroup"
	"fairway.dev/fairway/internal/node/runtime"
)

// Scheme is how container IDs of this runtime start.
const Scheme = "process"

// Image is the image that means the machine's own file system.
const Image = "host"

// Config says where a Runtime keeps what.
type Config struct {
	StateDir string // records and pipes, one directory a container; survives the process
	// Cgroups makes the containers' control groups; nil for none.
	Cgroups *cgroup.Manager
	// Self is what the command "fairway" means, whatever PATH says; usually
	// os.Executable().
	Self   string
	Logger *slog.Logger
}

// Runtime implements runtime.Runtime.
type Runtime struct {
	cfg      Config
	template *os.File // the mount namespace that containers' are copied from
	points   *mountpoints

	mu         sync.Mutex
	containers map[string]*container // by ID without the scheme
}

var _ runtime.Runtime = (*Runtime)(nil)

// record is what the next process needs to take a container over.
type record struct {
	ID         string    `json:"id"`
	Node       string    `json:"node"`
	UID        string    `json:"uid"`
	Sandbox    string    `json:"sandbox"`
	Name       string    `json:"name"`
	Attempt    uint32    `json:"attempt"`
	PID        int       `json:"pid"`
	StartTicks uint64    `json:"startTicks"` // tells the process from a later one of the same number
	BootID     string    `json:"bootID"`
	MountNS    uint64    `json:"mountNS"` // inode; marks every descendant
	NetNS      string    `json:"netNS"`
	Hostname   string    `json:"hostname"`
	Cgroup     string    `json:"cgroup"`
	LogPath    string    `json:"logPath"`
	TTY        bool      `json:"tty"`
	Stdin      bool      `json:"stdin"`
	StdinOnce  bool      `json:"stdinOnce"`
	Dir        string    `json:"dir"` // working directory
	Env        []string  `json:"env"`
	UserID     uint32    `json:"userID"`
	GroupID    uint32    `json:"groupID"`
	Groups     []uint32  `json:"groups"`
	NoNewPrivs bool      `json:"noNewPrivs"`
	Drop       []string  `json:"drop"`
	Add        []string  `json:"add"`
	Privileged bool      `json:"privileged"`
	StartedAt  time.Time `json:"startedAt"`

	Ended      bool      `json:"ended"`
	FinishedAt time.Time `json:"finishedAt"`
	ExitCode   int       `json:"exitCode"`
	OOMKilled  bool      `json:"oomKilled"`
	Unknown    bool      `json:"unknown"`
}

// container is one of them; rec is guarded by mu.
type container struct {
	rt    *Runtime
	dir   string // below StateDir
	group *cgroup.Group
	pidfd *pidfd
	out   *output
	stdin *os.File // our end, nil if it has none
	pty   *os.File // our end, nil if it has none
	done  chan struct{}

	mu  sync.Mutex
	rec record
}

// New makes a Runtime and takes over what an earlier one has left running.
func New(cfg Config) (*Runtime, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, err
	}
	template, err := newTemplate()
	if err != nil {
		return nil, fmt.Errorf("prepare a mount namespace for containers: %w", err)
	}
	r := &Runtime{cfg: cfg, template: template, containers: map[string]*container{},
		points: openMountpoints(filepath.Join(cfg.StateDir, "mountpoints.json"))}
	ents, err := os.ReadDir(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	for _, e := range ents {
		if !e.IsDir() {
			continue
		}
		if err := r.adopt(filepath.Join(cfg.StateDir, e.Name())); err != nil {
			cfg.Logger.Warn("cannot take over a container; it is removed", "dir", e.Name(), "err", err)
			os.RemoveAll(filepath.Join(cfg.StateDir, e.Name()))
		}
	}
	return r, nil
}

// Close lets go of all containers and leaves them running.
func (r *Runtime) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		c.out.close()
	}
	return r.template.Close()
}

// Scheme implements runtime.Runtime.
func (r *Runtime) Scheme() string { return Scheme }

// CreateSandbox implements runtime.Runtime: a sandbox is no more than a name.
func (r *Runtime) CreateSandbox(_ context.Context, s *runtime.Sandbox) error {
	s.ID = fmt.Sprintf("%s-%d", s.UID, s.Attempt)
	return nil
}

// RemoveSandbox implements runtime.Runtime.
func (r *Runtime) RemoveSandbox(ctx context.Context, s *runtime.Sandbox) error {
	r.mu.Lock()
	var mine []*container
	for _, c := range r.containers {
		if c.rec.Sandbox == s.ID {
			mine = append(mine, c)
		}
	}
	r.mu.Unlock()
	var errs []error
	for _, c := range mine {
		c.kill()
	}
	for _, c := range mine {
		select {
		case <-c.done:
			errs = append(errs, r.Remove(ctx, c.rec.ID))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.cfg.Cgroups != nil {
		g := r.cfg.Cgroups.Find(s.UID)
		errs = append(errs, g.Kill(), g.Remove())
	}
	return errors.Join(errs...)
}

// EnsureImage implements runtime.Runtime: the machine is always there.
func (r *Runtime) EnsureImage(_ context.Context, _ *runtime.Sandbox, image, _ string, _ []runtime.Auth) (string, error) {
	if image != Image {
		return "", &runtime.ImageError{Reason: "InvalidImageName", Err: fmt.Errorf("image %q: the process runtime runs only image %q", image, Image)}
	}
	return image, nil
}

// List implements runtime.Runtime.
func (r *Runtime) List(_ context.Context, node string) ([]runtime.State, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []runtime.State
	for _, c := range r.containers {
		if c.rec.Node == node {
			out = append(out, c.state())
		}
	}
	return out, nil
}

func (r *Runtime) find(id string) (*container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[strings.TrimPrefix(id, Scheme+"://")]
	if c == nil {
		return nil, fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
	}
	return c, nil
}

// Wait implements runtime.Runtime.
func (r *Runtime) Wait(ctx context.Context, id string) (runtime.State, error) {
	c, err := r.find(id)
	if err != nil {
		return runtime.State{}, err
	}
	select {
	case <-c.done:
		return c.state(), nil
	case <-ctx.Done():
		return runtime.State{}, ctx.Err()
	}
}

// Signal implements runtime.Runtime.
func (r *Runtime) Signal(_ context.Context, id string, sig unix.Signal) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		c.kill()
		return nil
	}
	return c.pidfd.signal(sig)
}

// Stop implements runtime.Runtime.
func (r *Runtime) Stop(ctx context.Context, id string, sig unix.Signal, grace time.Duration) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	if sig == 0 {
		sig = unix.SIGTERM
	}
	if grace > 0 {
		if err := c.pidfd.signal(sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-c.done:
			return nil
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.kill()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Remove implements runtime.Runtime.
func (r *Runtime) Remove(_ context.Context, id string) error {
	c, err := r.find(id)
	if errors.Is(err, runtime.ErrNotFound) {
		return nil
	}
	select {
	case <-c.done:
	default:
		return fmt.Errorf("container %s still runs: stop it first", id)
	}
	r.mu.Lock()
	delete(r.containers, c.rec.ID)
	r.mu.Unlock()
	return errors.Join(c.group.Remove(), os.RemoveAll(c.dir))
}

func (c *container) state() runtime.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	groups := make([]int64, 0, len(c.rec.Groups))
	for _, g := range c.rec.Groups {
		groups = append(groups, int64(g))
	}
	return runtime.State{
		ID: Scheme + "://" + c.rec.ID, SandboxUID: c.rec.UID, SandboxID: c.rec.Sandbox, Name: c.rec.Name, Attempt: c.rec.Attempt,
		Running: !c.rec.Ended, StartedAt: c.rec.StartedAt, FinishedAt: c.rec.FinishedAt, ExitCode: c.rec.ExitCode,
		OOMKilled: c.rec.OOMKilled, Unknown: c.rec.Unknown, Image: Image, Digest: Image,
		User: &runtime.UserInfo{UID: int64(c.rec.UserID), GID: int64(c.rec.GroupID), Groups: groups},
	}
}

// save writes the record. The caller holds c.mu or is the only one to know c.
func (c *container) save() error {
	data, err := json.Marshal(&c.rec)
	if err != nil {
		return err
	}
	tmp := filepath.Join(c.dir, "record.tmp")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(c.dir, "record.json"))
}

// kill ends every process of the container.
func (c *container) kill() {
	select {
	case <-c.done:
		return
	default:
	}
	if err := c.pidfd.signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		c.rt.cfg.Logger.Warn("cannot kill a container's process", "container", c.rec.ID, "err", err)
	}
	c.killRest()
}

// killRest ends what the first process has left behind.
func (c *container) killRest() {
	if c.group.CanKill() {
		if err := c.group.Kill(); err != nil {
			c.rt.cfg.Logger.Warn("cannot kill a container's processes", "container", c.rec.ID, "err", err)
		}
		return
	}
	killByMountNS(c.rec.MountNS)
}

// watch waits for the end and records it.
func (c *container) watch() {
	code, known := c.pidfd.wait()
	oom := c.group.OOMKilled()
	c.killRest()
	c.out.finish(time.Second)
	c.mu.Lock()
	c.rec.Ended, c.rec.FinishedAt, c.rec.ExitCode, c.rec.Unknown = true, time.Now(), code, !known
	c.rec.OOMKilled = oom
	if err := c.save(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.rt.cfg.Logger.Warn("cannot record the end of a container", "container", c.rec.ID, "err", err)
	}
	c.mu.Unlock()
	c.pidfd.close()
	for _, f := range []*os.File{c.stdin, c.pty} {
		if f != nil {
			f.Close()
		}
	}
	close(c.done)
}

// Cleanup ends every container that any process has started under this
// configuration and removes what they have left, the mount points made for
// them included.
func Cleanup(cfg Config) error {
	var errs []error
	if cfg.Cgroups != nil {
		errs = append(errs, cfg.Cgroups.Cleanup())
	}
	ents, _ := os.ReadDir(cfg.StateDir)
	for _, e := range ents {
		rec, err := readRecord(filepath.Join(cfg.StateDir, e.Name()))
		if err != nil || rec.Ended || !rec.alive() {
			continue
		}
		if err := unix.Kill(rec.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("end process %d: %w", rec.PID, err))
		}
		killByMountNS(rec.MountNS)
	}
	errs = append(errs, openMountpoints(filepath.Join(cfg.StateDir, "mountpoints.json")).removeAll())
	return errors.Join(append(errs, os.RemoveAll(cfg.StateDir))...)
}
