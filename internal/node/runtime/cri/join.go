package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/node/runtime"
)

// The CRI knows three networks for a sandbox: one of its own, the machine's, and
// none. A simulated node's, or that of a Pod whose network was made before, is a
// fourth. It is had by way of the network plugin: the daemon makes a namespace
// for the sandbox and mounts it at a path, asks the plugin to connect it, and
// only then starts the sandbox in what the path holds; for Pods named in joinDir
// the plugin mounts another namespace there.

// joinDir holds a file for each sandbox that is being made and is to join a
// network namespace: its name is the Pod's UID, its content the namespace's path.
const joinDir = "/run/fairway/join"

// createJoined makes a sandbox in the network namespace s.JoinNetNS, or none.
func (r *Runtime) createJoined(ctx context.Context, s *runtime.Sandbox) error {
	if err := os.MkdirAll(joinDir, 0o700); err != nil {
		return err
	}
	file := filepath.Join(joinDir, s.UID)
	if err := os.WriteFile(file, []byte(nsPath(s.JoinNetNS)+"\n"), 0o600); err != nil {
		return err
	}
	id, err := r.rt.RunPodSandbox(ctx, r.config(s), "")
	os.Remove(file) //nolint:errcheck // it is written anew for each sandbox
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", r.name, err), raiseLoopback(s.JoinNetNS))
	}
	s.ID = id
	if s.NetNSPath, err = r.netns(ctx, id); err == nil {
		err = sameNS(s.NetNSPath, nsPath(s.JoinNetNS))
	}
	if err != nil {
		err = fmt.Errorf("%s cannot run a Pod in the network namespace %s, which is not the machine's: %w", r.name, s.JoinNetNS, err)
		return errors.Join(err, r.removeJoined(context.WithoutCancel(ctx), s))
	}
	return nil
}

// nsPath is where a network namespace of that name can be opened.
func nsPath(name string) string { return filepath.Join(netns.Dir, name) }

// sameNS fails unless both paths are the same namespace.
func sameNS(got, want string) error {
	var a, b unix.Stat_t
	if err := unix.Stat(got, &a); err != nil {
		return fmt.Errorf("the sandbox's namespace %s: %w", got, err)
	}
	if err := unix.Stat(want, &b); err != nil {
		return fmt.Errorf("namespace %s: %w", want, err)
	}
	if a.Dev != b.Dev || a.Ino != b.Ino {
		return fmt.Errorf("the sandbox is in %s instead: the runtime did not pass the Pod's UID to its network plugin, or keeps its mounts to itself", got)
	}
	return nil
}

// removeJoined removes a sandbox from a namespace that is not its own. The
// daemon must not find the namespace any more when it takes the sandbox's network
// apart: the usual loopback plugin would set its loopback down.
func (r *Runtime) removeJoined(ctx context.Context, s *runtime.Sandbox) error {
	if s.NetNSPath != "" && sameNS(s.NetNSPath, nsPath(s.JoinNetNS)) == nil {
		unix.Unmount(s.NetNSPath, unix.MNT_DETACH) //nolint:errcheck // raiseLoopback makes good what comes of it
	}
	return errors.Join(r.removeSandbox(ctx, s.ID), raiseLoopback(s.JoinNetNS))
}

// raiseLoopback sets the loopback of a namespace up, in case the daemon has set
// it down. A namespace that has gone is none to care about.
func raiseLoopback(name string) error {
	ns, err := netns.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}
