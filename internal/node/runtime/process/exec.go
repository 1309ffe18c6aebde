package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/node/runtime"
)

// Exec implements runtime.Runtime. When ctx ends, so does the command.
func (r *Runtime) Exec(ctx context.Context, id string, cmd []string, st runtime.Streams) (int, error) {
	c, err := r.find(id)
	if err != nil {
		return 0, err
	}
	select {
	case <-c.done:
		return 0, fmt.Errorf("container %s is not running", id)
	default:
	}
	if len(cmd) == 0 {
		return 0, errors.New("no command to run")
	}
	rec := c.rec
	s := &spawn{join: rec.PID, netns: rec.NetNS, group: c.group, noNew: rec.NoNewPrivs, drop: rec.Drop, add: rec.Add, all: rec.Privileged,
		argv: cmd, env: rec.Env, dir: rec.Dir, self: r.cfg.Self, tty: st.TTY,
		user: &syscall.Credential{Uid: rec.UserID, Gid: rec.GroupID, Groups: rec.Groups}}
	io_, err := newPipes(st, s.user)
	if err != nil {
		return 0, err
	}
	if st.TTY {
		s.env = append(append([]string{}, s.env...), "TERM=xterm")
	}
	for _, f := range io_.theirs {
		s.files = append(s.files, f.Fd())
	}
	p, _, err := s.start()
	for _, f := range io_.theirs {
		f.Close()
	}
	if err != nil {
		io_.close()
		return 0, err
	}
	defer p.close()
	stop := context.AfterFunc(ctx, func() { p.signal(unix.SIGKILL) }) //nolint:errcheck
	defer stop()
	io_.run(st)
	code, _ := p.wait()
	io_.finish()
	if err := ctx.Err(); err != nil {
		return code, err
	}
	return code, nil
}

// pipes joins a command's files with a client's streams.
type pipes struct {
	theirs   []*os.File
	stdin    *os.File
	out, err *os.File
	pty      *os.File
	wg       sync.WaitGroup
}

func newPipes(st runtime.Streams, user *syscall.Credential) (p *pipes, err error) {
	p = &pipes{}
	if st.TTY {
		master, slave, err := openPTY()
		if err != nil {
			return nil, err
		}
		slave.Chown(int(user.Uid), int(user.Gid)) //nolint:errcheck // it can be used all the same
		p.pty, p.theirs = master, []*os.File{slave, dup(slave), dup(slave)}
		return p, nil
	}
	in, err := os.Open(os.DevNull)
	if st.Stdin != nil {
		in.Close()
		in, p.stdin, err = os.Pipe()
	}
	if err != nil {
		return nil, err
	}
	p.theirs = append(p.theirs, in)
	for _, ours := range []**os.File{&p.out, &p.err} {
		r, w, err := os.Pipe()
		if err != nil {
			p.close()
			return nil, err
		}
		*ours = r
		p.theirs = append(p.theirs, w)
	}
	return p, nil
}

func (p *pipes) run(st runtime.Streams) {
	if p.pty != nil {
		go resize(p.pty, st.Resize)
		if st.Stdin != nil {
			go io.Copy(p.pty, st.Stdin) //nolint:errcheck // ends with either side
		}
		p.copy(st.Stdout, p.pty)
		return
	}
	if p.stdin != nil {
		go func() {
			io.Copy(p.stdin, st.Stdin) //nolint:errcheck // ends with either side
			p.stdin.Close()
		}()
	}
	p.copy(st.Stdout, p.out)
	p.copy(st.Stderr, p.err)
}

func (p *pipes) copy(dst io.Writer, src *os.File) {
	if dst == nil {
		dst = io.Discard
	}
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		io.Copy(dst, src) //nolint:errcheck // a client that has gone is no error of the command
	}()
}

// finish waits for the last output; a descendant that holds the pipe open does
// not hold up the answer for long.
func (p *pipes) finish() {
	for _, f := range []*os.File{p.pty, p.out, p.err} {
		if f != nil {
			f.SetReadDeadline(time.Now().Add(time.Second)) //nolint:errcheck
		}
	}
	p.wg.Wait()
	p.close()
}

func (p *pipes) close() {
	for _, f := range []*os.File{p.stdin, p.out, p.err, p.pty} {
		if f != nil {
			f.Close()
		}
	}
}

// Attach implements runtime.Runtime.
func (r *Runtime) Attach(ctx context.Context, id string, st runtime.Streams) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	select {
	case <-c.done:
		return fmt.Errorf("container %s is not running", id)
	default:
	}
	var out, errw io.Writer
	if st.Stdout != nil {
		out = st.Stdout
	}
	if st.Stderr != nil {
		errw = st.Stderr
	}
	detach := c.out.attach(out, errw)
	defer detach()
	var w *os.File
	if c.pty != nil {
		w = c.pty
		go resize(c.pty, st.Resize)
	} else {
		w = c.stdin
	}
	gone := make(chan struct{})
	if st.Stdin != nil {
		if w == nil {
			return fmt.Errorf("container %s has no stdin: its spec says stdin: false", c.rec.Name)
		}
		go func() {
			_, err := io.Copy(w, st.Stdin)
			if c.rec.StdinOnce && c.pty == nil {
				c.stdin.Close()
			}
			if err == nil && st.Stdout == nil && st.Stderr == nil {
				close(gone)
			}
		}()
	}
	select {
	case <-c.done:
		return nil
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func resize(pty *os.File, sizes <-chan unix.Winsize) {
	raw, err := pty.SyscallConn()
	if err != nil || sizes == nil {
		return
	}
	for size := range sizes {
		if raw.Control(func(fd uintptr) { unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &size) }) != nil { //nolint:errcheck
			return
		}
	}
}

// openPTY opens a pseudo-terminal (pty(7)).
func openPTY() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	sfd, err := unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "ptmx"), os.NewFile(uintptr(sfd), "pts"), nil
}
