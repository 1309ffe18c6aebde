package process

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/node/runtime"
)

// Start implements runtime.Runtime.
func (r *Runtime) Start(_ context.Context, sb *runtime.Sandbox, spec *runtime.Container) (_ runtime.State, err error) {
	argv := append(append([]string{}, spec.Command...), spec.Args...)
	if len(argv) == 0 {
		return runtime.State{}, errors.New(`no command specified: a container of image "host" needs a command`)
	}
	id := newID()
	c := &container{rt: r, dir: filepath.Join(r.cfg.StateDir, id[:16]), done: make(chan struct{})}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return runtime.State{}, err
	}
	defer func() {
		if err != nil {
			if c.out != nil {
				c.out.close()
			}
			c.group.Remove() //nolint:errcheck // the first error says more
			os.RemoveAll(c.dir)
		}
	}()
	user, err := credential(spec)
	if err != nil {
		return runtime.State{}, err
	}
	c.rec = record{ID: id, Node: sb.Node, UID: sb.UID, Sandbox: sb.ID, Name: spec.Name, Attempt: spec.Attempt, BootID: bootID(),
		NetNS: sb.NetNS, Hostname: sb.Hostname, Cgroup: filepath.Join(sb.UID, spec.Name+"-"+strconv.Itoa(int(spec.Attempt))),
		LogPath: spec.LogPath, TTY: spec.TTY, Stdin: spec.Stdin, StdinOnce: spec.StdinOnce, Dir: spec.WorkingDir, Env: environment(sb, spec),
		UserID: user.Uid, GroupID: user.Gid, Groups: user.Groups,
		NoNewPrivs: spec.NoNewPrivs, Drop: spec.DropCaps, Add: spec.AddCaps, Privileged: spec.Privileged}
	if c.rec.Dir == "" {
		c.rec.Dir = "/"
	}
	if r.cfg.Cgroups != nil {
		if lacks := r.cfg.Cgroups.Lacks(spec.Limits); len(lacks) > 0 {
			r.cfg.Logger.Debug("limits not held: the machine has no such control group controllers", "pod", sb.Name, "container", spec.Name, "controllers", lacks)
		}
		if c.group, err = r.cfg.Cgroups.Create(c.rec.Cgroup, spec.Limits); err != nil {
			return runtime.State{}, err
		}
	}
	if c.out, err = newOutput(spec.LogPath); err != nil {
		return runtime.State{}, err
	}
	files, err := c.openStreams(user)
	if err != nil {
		return runtime.State{}, err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	s := &spawn{template: r.template, netns: sb.NetNS, hostname: sb.Hostname, mounts: spec.Mounts, points: r.points,
		roRoot: spec.ReadOnlyRoot, group: c.group, noNew: spec.NoNewPrivs, drop: spec.DropCaps, add: spec.AddCaps, all: spec.Privileged,
		argv: argv, env: c.rec.Env, dir: c.rec.Dir, self: r.cfg.Self, user: user, tty: spec.TTY, oomAdj: spec.OOMScoreAdj}
	if sb.HostNetwork {
		s.hostname = "" // the machine's
	}
	for _, f := range files {
		s.files = append(s.files, f.Fd())
	}
	c.rec.StartedAt = time.Now()
	p, mntns, err := s.start()
	if err != nil {
		return runtime.State{}, err
	}
	c.pidfd, c.rec.PID, c.rec.MountNS = p, p.pid, mntns
	c.rec.StartTicks, _ = startTicks(p.pid) // 0 if it has ended by now: then nobody will adopt it
	if err := c.save(); err != nil {
		c.kill()
		p.wait()
		return runtime.State{}, fmt.Errorf("record the container: %w", err)
	}
	r.mu.Lock()
	r.containers[id] = c
	r.mu.Unlock()
	st := c.state()
	go c.watch()
	return st, nil
}

func newID() string {
	b := make([]byte, 32)
	rand.Read(b) //nolint:errcheck // never fails
	return hex.EncodeToString(b)
}

// openStreams makes the pipes or the terminal, begins to read ours and returns
// the container's files 0, 1 and 2.
//
// The container's ends of pipes are open for reading too: a pipe whose only
// reader was Fairway would kill the writer when Fairway goes.
func (c *container) openStreams(user *syscall.Credential) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	if c.rec.TTY {
		master, slave, err := openPTY()
		if err != nil {
			return nil, err
		}
		if err := slave.Chown(int(user.Uid), int(user.Gid)); err != nil {
			slave.Close()
			master.Close()
			return nil, err
		}
		c.pty = master
		c.out.add("stdout", dup(master))
		return []*os.File{slave, dup(slave), dup(slave)}, nil
	}
	in, err := os.Open(os.DevNull)
	if c.rec.Stdin {
		in, err = c.openStdin()
	}
	if err != nil {
		return nil, err
	}
	files = append(files, in)
	for _, name := range []string{"stdout", "stderr"} {
		path := filepath.Join(c.dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return files, fmt.Errorf("make pipe: %w", err)
		}
		if err := os.Chown(path, int(user.Uid), int(user.Gid)); err != nil { // for those who open /dev/stdout
			return files, err
		}
		theirs, err := openFD(path, unix.O_RDWR)
		if err != nil {
			return files, err
		}
		files = append(files, theirs)
		ours, err := openFD(path, unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return files, err
		}
		c.out.add(name, ours)
	}
	return files, nil
}

func (c *container) openStdin() (theirs *os.File, err error) {
	path := filepath.Join(c.dir, "stdin")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	// Reading and writing: opening must not wait for the other end.
	if c.stdin, err = openFD(path, unix.O_RDWR|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	mode := unix.O_RDWR // the pipe outlives us, so it never ends
	if c.rec.StdinOnce {
		mode = unix.O_RDONLY // it ends when the first client has finished
	}
	if theirs, err = openFD(path, mode); err != nil {
		return nil, err
	}
	if c.rec.StdinOnce {
		// From here on we only write, so that closing our end ends it.
		w, err := openFD(path, unix.O_WRONLY|unix.O_NONBLOCK)
		if err != nil {
			return theirs, err
		}
		c.stdin.Close()
		c.stdin = w
	}
	return theirs, nil
}

func openFD(path string, mode int) (*os.File, error) {
	fd, err := unix.Open(path, mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func dup(f *os.File) *os.File {
	var fd int
	var err error
	raw, rerr := f.SyscallConn()
	if rerr != nil {
		return nil
	}
	raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }) //nolint:errcheck
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func credential(c *runtime.Container) (*syscall.Credential, error) {
	cred := &syscall.Credential{}
	if c.User != nil {
		cred.Uid = uint32(*c.User)
	}
	if c.Group != nil {
		cred.Gid = uint32(*c.Group)
	}
	for _, g := range c.SupplementalGroups {
		cred.Groups = append(cred.Groups, uint32(g))
	}
	if c.NonRoot && cred.Uid == 0 {
		return nil, errors.New("container has runAsNonRoot and image will run as root: set runAsUser")
	}
	return cred, nil
}

// environment adds what every container has.
func environment(sb *runtime.Sandbox, c *runtime.Container) []string {
	env := []string{"PATH=" + defaultPath, "HOSTNAME=" + sb.Hostname}
	home := "/root"
	if c.User != nil && *c.User != 0 {
		home = "/"
	}
	env = append(env, "HOME="+home)
	if c.TTY {
		env = append(env, "TERM=xterm")
	}
	// Later ones win; execve passes all, so earlier ones go.
	all := append(env, c.Env...)
	last := map[string]int{}
	for i, e := range all {
		name, _, _ := strings.Cut(e, "=")
		last[name] = i
	}
	var out []string
	for i, e := range all {
		if name, _, _ := strings.Cut(e, "="); last[name] == i {
			out = append(out, e)
		}
	}
	return out
}

func readRecord(dir string) (record, error) {
	var rec record
	data, err := os.ReadFile(filepath.Join(dir, "record.json"))
	if err == nil {
		err = json.Unmarshal(data, &rec)
	}
	return rec, err
}

// alive tells whether the recorded process is the one of that number now.
func (rec *record) alive() bool {
	if rec.BootID != bootID() || rec.StartTicks == 0 {
		return false
	}
	t, err := startTicks(rec.PID)
	return err == nil && t == rec.StartTicks
}

// adopt takes over a container of an earlier process.
func (r *Runtime) adopt(dir string) error {
	rec, err := readRecord(dir)
	if err != nil {
		return err
	}
	c := &container{rt: r, dir: dir, rec: rec, done: make(chan struct{})}
	if r.cfg.Cgroups != nil {
		c.group = r.cfg.Cgroups.Find(rec.Cgroup)
	}
	r.containers[rec.ID] = c
	if c.out, err = newOutput(rec.LogPath); err != nil {
		return err
	}
	if rec.Ended {
		c.out.close()
		close(c.done)
		return nil
	}
	// The pipes may hold lines that nobody has read.
	for _, name := range []string{"stdout", "stderr"} {
		if f, err := openFD(filepath.Join(dir, name), unix.O_RDONLY|unix.O_NONBLOCK); err == nil {
			c.out.add(name, f)
		}
	}
	if rec.Stdin && !rec.StdinOnce && !rec.TTY {
		c.stdin, _ = openFD(filepath.Join(dir, "stdin"), unix.O_RDWR|unix.O_NONBLOCK)
	}
	p, err := openPidfd(rec.PID)
	if err != nil || !rec.alive() {
		if err == nil {
			p.close()
		}
		if rec.BootID == bootID() {
			c.killRest()
		}
		c.out.finish(0)
		c.rec.Ended, c.rec.FinishedAt, c.rec.ExitCode, c.rec.Unknown = true, time.Now(), 137, true
		close(c.done)
		return c.save()
	}
	c.pidfd = p
	if rec.TTY {
		c.kill() // its terminal went with the process that held it
	}
	go c.watch()
	return nil
}
