package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// lock makes this the only proxy of its name in the network namespace, and
// waits while another one is. Two at once would each take the other's changes
// for damage and undo them; so when a new build starts beside the old one it
// reads the API, waits, and takes over the moment the old one has ended,
// however it ended.
//
// The lock is a socket with an abstract name (unix(7)): it belongs to the
// namespace and goes with the process. The holder accepts nothing; whoever
// waits is connected to it and is told of its end by the kernel. Only a holder
// of this process's own user, or root, counts: nobody else can keep the node
// from being served.
func (p *Proxy) lock(ctx context.Context) (release func(), err error) {
	if p.cfg.Lock == "" {
		return func() {}, nil
	}
	name := "@fairway-proxy-" + p.cfg.Lock
	told := false
	for {
		var l net.Listener
		err := p.inside(func() (err error) { l, err = net.Listen("unix", name); return err })
		if err == nil {
			return func() { l.Close() }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		var c net.Conn
		if err := p.inside(func() (err error) { c, err = net.Dial("unix", name); return err }); err == nil {
			uid, pid := peer(c)
			if uid != 0 && uid != unix.Geteuid() {
				c.Close()
				p.log.Warn("somebody without the right to holds this proxy's lock; going on without it", "name", name, "uid", uid, "pid", pid)
				return func() {}, nil
			}
			if !told {
				told = true
				p.log.Info("another proxy programs this node; waiting for it to end", "pid", pid)
			}
			stop := context.AfterFunc(ctx, func() { c.Close() })
			c.Read(make([]byte, 1)) // returns when the holder is gone
			stop()
			c.Close()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// inside runs f in the proxy's network namespace.
func (p *Proxy) inside(f func() error) error {
	if p.cfg.NetNS != nil {
		return p.cfg.NetNS.Do(f)
	}
	return f()
}

// peer returns who listens at the other end; uid -1 if that cannot be told.
func peer(c net.Conn) (uid, pid int) {
	uid = -1
	if raw, err := c.(*net.UnixConn).SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				uid, pid = int(cred.Uid), int(cred.Pid)
			}
		})
	}
	return uid, pid
}
