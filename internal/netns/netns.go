// Package netns makes, finds and enters Linux network namespaces.
//
// In goes the name of a namespace, out comes an open handle on it; Do runs a
// function inside. Named namespaces are the ones `ip netns` shows: a bind
// mount of the namespace's nsfs file below /run/netns (see ip-netns(8)). The
// package touches nothing else: no links, no addresses, no routes.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Dir is where named namespaces are mounted, the directory ip-netns(8) uses.
const Dir = "/run/netns"

// NS is an open network namespace. It is safe for concurrent use; Close it
// when done. The namespace lives on for as long as its name, a process or a
// handle holds it.
type NS struct {
	name string
	file *os.File
}

// mountMu serialises the once-per-machine preparation of Dir within this
// process; other processes are held off by the idempotence of each step.
var mountMu sync.Mutex

// Create makes a new network namespace, gives it the name and brings nothing
// up inside it. It fails with fs.ErrExist if the name is taken.
func Create(name string) (*NS, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := prepareDir(); err != nil {
		return nil, err
	}
	path := filepath.Join(Dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %q: %w", name, err)
	}
	f.Close()
	err = onNewThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return unix.Mount(threadNS(), path, "none", unix.MS_BIND, "")
	})
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("create network namespace %q: %w", name, err)
	}
	return Open(name)
}

// Bind gives a name to the namespace that a file such as /proc/PID/ns/net
// refers to, and opens it. It fails with fs.ErrExist if the name is taken.
func Bind(name, source string) (*NS, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := prepareDir(); err != nil {
		return nil, err
	}
	path := filepath.Join(Dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("name network namespace %q: %w", name, err)
	}
	f.Close()
	if err := unix.Mount(source, path, "none", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("name network namespace %q after %s: %w", name, source, err)
	}
	return Open(name)
}

// Open opens the namespace of that name. It fails with fs.ErrNotExist if there
// is none.
func Open(name string) (*NS, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return open(name, filepath.Join(Dir, name))
}

// OpenPath opens the namespace that a file such as /proc/PID/ns/net refers to.
func OpenPath(path string) (*NS, error) { return open(path, path) }

// Current opens the namespace of the calling thread.
func Current() (*NS, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return open("", threadNS())
}

func open(name, path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.NSFS_MAGIC {
		f.Close()
		return nil, fmt.Errorf("open network namespace: %s is not a namespace (a name left behind without its mount?)", path)
	}
	return &NS{name: name, file: f}, nil
}

// Delete takes the name away. The namespace itself goes when the last process
// and handle have left it. Deleting a name that does not exist is no error.
func Delete(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	path := filepath.Join(Dir, name)
	// Several mounts can be stacked on one name if two creators raced.
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("delete network namespace %q: %w", name, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %q: %w", name, err)
	}
	return nil
}

// List returns the names that start with prefix, sorted.
func List(prefix string) ([]string, error) {
	entries, err := os.ReadDir(Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// Name is the name the namespace was opened by; empty for Current.
func (ns *NS) Name() string { return ns.name }

// Fd is the handle's file descriptor, valid until Close. It is what
// netlink.NewHandleAt, nftables.WithNetNSFd and the like take.
func (ns *NS) Fd() int { return int(ns.file.Fd()) }

// Path is a path other processes can open the namespace by while this process
// holds it.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()) }

// Close gives the handle up.
func (ns *NS) Close() error { return ns.file.Close() }

// Do runs f on a thread that is in the namespace and returns its error.
// Sockets that f opens stay in the namespace for good, whichever thread uses
// them later; goroutines that f starts do not inherit it, and neither does a
// process it starts once f has returned. f must not call
// runtime.UnlockOSThread.
func (ns *NS) Do(f func() error) error {
	return onNewThread(func() error {
		if err := ns.enter(); err != nil {
			return fmt.Errorf("enter network namespace %q: %w", ns.name, err)
		}
		return f()
	})
}

// enter moves the calling thread into the namespace. Control keeps a Close by
// somebody else from taking the descriptor away meanwhile.
func (ns *NS) enter() error {
	conn, err := ns.file.SyscallConn()
	if err != nil {
		return err
	}
	var setns error
	err = conn.Control(func(fd uintptr) { setns = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	return errors.Join(err, setns)
}

// Listen announces on a TCP address inside the namespace.
func (ns *NS) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := ns.Do(func() (err error) {
		var lc net.ListenConfig
		l, err = lc.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket announces on a UDP address inside the namespace.
func (ns *NS) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := ns.Do(func() (err error) {
		var lc net.ListenConfig
		c, err = lc.ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

// DialContext connects from inside the namespace to an IP address and port.
// Host names are refused: resolving them would use this process's resolver.
// Its signature is that of http.Transport.DialContext.
func (ns *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if base, _, _ := strings.Cut(host, "%"); net.ParseIP(base) == nil {
		return nil, fmt.Errorf("dial %s in network namespace %q: host must be an IP address", address, ns.name)
	}
	var c net.Conn
	err = ns.Do(func() (err error) {
		// One address: the dialer opens its socket on this thread, without
		// racing address families in other goroutines.
		d := net.Dialer{FallbackDelay: -1}
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// onNewThread runs f on an OS thread of its own, and lets the thread die
// instead of handing a changed one back to the scheduler.
func onNewThread(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		errc <- f()
	}()
	return <-errc
}

func threadNS() string {
	return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("network namespace name %q: must be a plain file name", name)
	}
	return nil
}

// prepareDir makes Dir a shared mount point, as ip-netns(8) does, so that
// names made here are seen by processes in other mount namespaces.
func prepareDir() error {
	mountMu.Lock()
	defer mountMu.Unlock()
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, ""); err == nil {
		return nil
	} else if !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("make %s a shared mount: %w", Dir, err)
	}
	if err := unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make %s a mount point: %w", Dir, err)
	}
	if err := unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make %s a shared mount: %w", Dir, err)
	}
	return nil
}
