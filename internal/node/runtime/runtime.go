// Package runtime is what a node needs from something that runs containers.
//
// In go a sandbox (what the containers of a Pod share) and containers as they
// are to be started, with every reference resolved: environment, mounts, users
// are values by now. Out come exits. A runtime knows no Kubernetes API object
// and does not decide when anything is started again.
//
// Two implement it: process, which runs commands of the machine's own file
// system, and cri, which asks containerd or CRI-O.
package runtime

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/node/cgroup"
)

// Sandbox is what the containers of a Pod share.
type Sandbox struct {
	// ID is the runtime's; set by CreateSandbox.
	ID string `json:"id"`

	Node      string `json:"node"`
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Attempt   uint32 `json:"attempt"`
	Hostname  string `json:"hostname"`
	LogDir    string `json:"logDir"`

	// NetNS is the name of the network namespace (as in /run/netns) that the
	// containers run in, made by the caller. NetNSPath is set by runtimes that
	// make one themselves; the caller then connects that one.
	NetNS     string `json:"netNS"`
	NetNSPath string `json:"netNSPath,omitempty"`
	// JoinNetNS names the network namespace that the sandbox is to be in, for
	// runtimes that would make one themselves: a node's, for hostNetwork, or that
	// of a Pod that already has its network. "" for none.
	JoinNetNS   string `json:"joinNetNS,omitempty"`
	HostNetwork bool   `json:"hostNetwork,omitempty"`
	HostPID     bool   `json:"hostPID,omitempty"`
	HostIPC     bool   `json:"hostIPC,omitempty"`
	SharePID    bool   `json:"sharePID,omitempty"`

	DNSServers, DNSSearches, DNSOptions []string `json:"-"`
	Sysctls                             map[string]string
	Labels, Annotations                 map[string]string `json:"-"`
	RunAsUser, RunAsGroup               *int64            `json:"-"`
	Privileged                          bool              `json:"-"`
}

// Mount puts a file or directory of the machine into a container.
type Mount struct {
	Source, Target string
	ReadOnly       bool
	// Propagation is unix.MS_PRIVATE, MS_SLAVE or MS_SHARED.
	Propagation uintptr
}

// Container is one container as it is to be started.
type Container struct {
	Name    string
	Attempt uint32
	Image   string // for messages and the cri runtime
	// ImageRef is what EnsureImage answered.
	ImageRef string

	Command, Args []string
	Env           []string // "NAME=value", later ones win
	WorkingDir    string
	Mounts        []Mount
	LogPath       string // absolute; the log is in CRI's format

	Stdin, StdinOnce, TTY bool

	// SeeProcesses is the ID of a container whose processes this one is to see,
	// with its scheme; "" for none.
	SeeProcesses string

	User, Group        *int64
	SupplementalGroups []int64
	NonRoot            bool // refuse to run as user 0
	Privileged         bool
	NoNewPrivs         bool
	ReadOnlyRoot       bool
	AddCaps, DropCaps  []string // without "CAP_"; "ALL" for every one
	// Seccomp is nil for every system call. The process runtime does without.
	Seccomp     *v1.SeccompProfile
	Limits      cgroup.Limits
	OOMScoreAdj int
}

// State is how a container is doing.
type State struct {
	ID            string // with the runtime's scheme: "process://…"
	SandboxUID    string
	SandboxID     string
	Name          string
	Attempt       uint32
	Running       bool
	StartedAt     time.Time
	FinishedAt    time.Time
	ExitCode      int
	OOMKilled     bool
	Unknown       bool // it has ended, nobody saw how
	Image, Digest string
	User          *UserInfo
}

// UserInfo is who the first process is.
type UserInfo struct {
	UID, GID int64
	Groups   []int64
}

// Streams are the ends of an exec or attach; each may be nil.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.WriteCloser
	TTY            bool
	// Short says that nobody looks on: output may come all at once at the end.
	Short bool
	// Resize gets the terminal's size when it changes.
	Resize <-chan unix.Winsize
}

// ErrNotFound is returned for a container that the runtime does not know.
var ErrNotFound = errors.New("no such container")

// ImageError says why an image cannot be had, in the words kubectl shows as a
// container's waiting reason.
type ImageError struct {
	Reason string // ErrImagePull, ErrImageNeverPull, InvalidImageName, …
	Err    error
}

func (e *ImageError) Error() string { return e.Err.Error() }
func (e *ImageError) Unwrap() error { return e.Err }

// Runtime runs containers. All methods may be called at the same time.
type Runtime interface {
	// Scheme is how the runtime's container IDs start, without "://".
	Scheme() string
	// CreateSandbox makes what the containers share, and sets s.ID; and
	// s.NetNSPath if the runtime makes the network namespace itself.
	CreateSandbox(ctx context.Context, s *Sandbox) error
	// RemoveSandbox ends what still runs in it and removes it all.
	RemoveSandbox(ctx context.Context, s *Sandbox) error
	// EnsureImage makes an image present; pull is "Always", "IfNotPresent" or "Never".
	// It answers with what identifies the content.
	EnsureImage(ctx context.Context, s *Sandbox, image, pull string, auths []Auth) (ref string, err error)
	// Start starts a container and returns its state.
	Start(ctx context.Context, s *Sandbox, c *Container) (State, error)
	// List returns every container the runtime knows for a node, running or not.
	List(ctx context.Context, node string) ([]State, error)
	// Wait returns when the container has ended.
	Wait(ctx context.Context, id string) (State, error)
	// Signal sends a signal to the container's first process; SIGKILL ends them all.
	Signal(ctx context.Context, id string, sig unix.Signal) error
	// Stop asks the container to end (signal 0 for its own stop signal), and ends
	// it after grace. It returns when it has ended.
	Stop(ctx context.Context, id string, sig unix.Signal, grace time.Duration) error
	// Remove forgets an ended container. Its log stays.
	Remove(ctx context.Context, id string) error
	// Exec runs a command in a running container and returns its exit code.
	Exec(ctx context.Context, id string, cmd []string, s Streams) (int, error)
	// Attach connects to the first process's streams until it ends or ctx does.
	Attach(ctx context.Context, id string, s Streams) error
}

// Auth is a credential for an image registry.
type Auth struct{ Username, Password, Auth, ServerAddress, IdentityToken, RegistryToken string }
