package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/node/cgroup"
	"fairway.dev/fairway/internal/node/runtime"
)

// newTemplate makes the mount namespace that containers' namespaces are copied
// from: the machine's, without the names of network namespaces. A copy of those
// in each of a thousand containers would be a million mounts, and would keep
// the namespaces of Pods long gone alive.
func newTemplate() (*os.File, error) {
	var f *os.File
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		// The machine's later mounts appear inside; nothing comes back.
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return err
		}
		for {
			if err := unix.Unmount(netns.Dir, unix.MNT_DETACH); err != nil {
				break
			}
		}
		f, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid()))
		return err
	})
	return f, err
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked
		errc <- f()
	}()
	return <-errc
}

// spawn is what one command is started with.
type spawn struct {
	template *os.File // copied for a new container; nil to join that of join
	join     int      // process whose mount and UTS namespaces to enter
	netns    string   // name, "" for the machine's
	hostname string
	mounts   []runtime.Mount
	trees    []int // of mounts, see openTrees
	points   *mountpoints
	roRoot   bool
	group    *cgroup.Group
	noNew    bool
	drop     []string
	add      []string
	all      bool // privileged: keep every capability

	argv   []string
	env    []string
	dir    string
	self   string
	user   *syscall.Credential
	files  []uintptr
	tty    bool
	oomAdj int
}

// start starts the command and returns its pidfd and the inode of its mount
// namespace. An error says what could not be done, in the words of the
// container's status.
func (s *spawn) start() (p *pidfd, mntns uint64, err error) {
	cg, err := s.group.Open()
	if err != nil {
		return nil, 0, err
	}
	if cg != nil {
		defer cg.Close()
	}
	var net *netns.NS
	if s.netns != "" {
		if net, err = netns.Open(s.netns); err != nil {
			return nil, 0, err
		}
		defer net.Close()
	}
	// Outer mounts first, so that inner ones land in them.
	s.mounts = slices.Clone(s.mounts)
	slices.SortStableFunc(s.mounts, func(a, b runtime.Mount) int {
		return strings.Count(filepath.Clean(a.Target), "/") - strings.Count(filepath.Clean(b.Target), "/")
	})
	s.trees = openTrees(s.mounts)
	defer func() {
		for _, fd := range s.trees {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}()
	err = onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		if net != nil {
			if err := unix.Setns(net.Fd(), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", s.netns, err)
			}
		}
		if err := s.group.EnterThread(); err != nil {
			return err
		}
		path, err := s.lookPath()
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/mnt", &st); err == nil {
			mntns = st.Ino
		}
		if err := s.privileges(); err != nil {
			return err
		}
		fd := -1
		attr := &syscall.ProcAttr{Dir: s.dir, Env: s.env, Files: s.files, Sys: &syscall.SysProcAttr{
			Setsid: true, PidFD: &fd, Credential: s.user}}
		if s.tty {
			attr.Sys.Setctty = true // of file 0
		}
		if cg != nil {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(cg.Fd())
		}
		pid, err := syscall.ForkExec(path, s.argv, attr)
		if err != nil {
			return fmt.Errorf("run %s in %s: %w", path, s.dir, err)
		}
		if fd < 0 {
			if fd, err = unix.PidfdOpen(pid, 0); err != nil {
				unix.Kill(pid, unix.SIGKILL) //nolint:errcheck
				return fmt.Errorf("the kernel has no pidfd, which Fairway needs (Linux 5.4): %w", err)
			}
		}
		if s.oomAdj != 0 {
			os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(s.oomAdj)), 0o644) //nolint:errcheck // a preference
		}
		p, err = newPidfd(fd, pid, true)
		return err
	})
	return p, mntns, err
}

// enter brings the thread into the container's mount and UTS namespaces.
func (s *spawn) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // a thread that shares it may not change mount namespaces
		return err
	}
	if s.template == nil {
		for _, kind := range []struct {
			name string
			flag int
		}{{"mnt", unix.CLONE_NEWNS}, {"uts", unix.CLONE_NEWUTS}} {
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", s.join, kind.name))
			if err != nil {
				return err
			}
			err = unix.Setns(int(f.Fd()), kind.flag)
			f.Close()
			if err != nil {
				return fmt.Errorf("enter the container's %s namespace: %w", kind.name, err)
			}
		}
		return nil
	}
	if err := unix.Setns(int(s.template.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the template mount namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if s.hostname != "" {
		if err := unix.Sethostname([]byte(s.hostname)); err != nil {
			return fmt.Errorf("set hostname: %w", err)
		}
	}
	if s.roRoot {
		if err := setReadOnly("/"); err != nil {
			return fmt.Errorf("make the root file system read-only: %w", err)
		}
	}
	var done []string
	for i, m := range s.mounts {
		if err := s.mount(m, s.trees[i], done); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.Source, m.Target, err)
		}
		done = append(done, filepath.Clean(m.Target))
	}
	return nil
}

// attach puts a tree that openTrees has taken, or the source as this namespace
// has it, at its target.
func attach(m runtime.Mount, tree int) error {
	if tree < 0 {
		return unix.Mount(m.Source, m.Target, "", unix.MS_BIND|unix.MS_REC, "")
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, m.Target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// openTrees takes the sources of mounts as the machine has them now: the
// template is older, and sees a later mount only where the machine's mounts are
// shared. -1 stands for what could not be taken (before Linux 5.2).
func openTrees(mounts []runtime.Mount) []int {
	trees := make([]int, len(mounts))
	for i, m := range mounts {
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			fd = -1
		}
		trees[i] = fd
	}
	return trees
}

func (s *spawn) mount(m runtime.Mount, tree int, earlier []string) error {
	fi, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	inVolume := slices.ContainsFunc(earlier, func(dir string) bool { return strings.HasPrefix(m.Target, dir+"/") })
	if err := s.points.ensure(m.Target, fi.IsDir(), !inVolume); err != nil {
		return err
	}
	if err := attach(m, tree); err != nil {
		return err
	}
	if m.Propagation != 0 {
		if err := unix.Mount("", m.Target, "", m.Propagation|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("set propagation: %w", err)
		}
	}
	if m.ReadOnly {
		return setReadOnly(m.Target)
	}
	return nil
}

// setReadOnly makes a mount and those below it read-only.
func setReadOnly(path string) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	flags := uint(unix.AT_RECURSIVE)
	if path == "/" {
		flags = 0 // leave /proc, /dev, /sys and the volumes as they are
	}
	err := unix.MountSetattr(unix.AT_FDCWD, path, flags, &attr)
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.12
		return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	return err
}

// privileges narrows what the thread, and so the command, may do.
func (s *spawn) privileges() error {
	if s.noNew {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	if s.all || len(s.drop) == 0 {
		return nil
	}
	keep := map[string]bool{}
	for _, c := range s.add {
		keep[capName(c)] = true
	}
	for _, d := range s.drop {
		for n, name := range capabilities {
			if (strings.EqualFold(d, "ALL") || capName(d) == name) && !keep[name] {
				// Beyond the kernel's last capability: EINVAL, nothing to drop.
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
					return fmt.Errorf("drop capability %s: %w", name, err)
				}
			}
		}
	}
	return nil
}

func capName(s string) string { return strings.TrimPrefix(strings.ToUpper(s), "CAP_") }

// capabilities by number (capabilities(7), include/uapi/linux/capability.h).
var capabilities = []string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO",
	"SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
	"LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE"}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookPath finds the command as execvp(3) would with the container's PATH and
// working directory. The thread is in the container's mount namespace.
func (s *spawn) lookPath() (string, error) {
	name := s.argv[0]
	if name == "fairway" && s.self != "" {
		return s.self, nil
	}
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(s.dir, name)
		}
		return name, nil
	}
	path := defaultPath
	for _, e := range s.env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if !filepath.IsAbs(p) {
			p = filepath.Join(s.dir, p)
		}
		if fi, err := os.Stat(p); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH (%s)", name, path)
}
