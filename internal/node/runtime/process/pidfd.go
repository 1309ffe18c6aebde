package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pidfd refers to a process for as long as it is open, whatever becomes of its
// number, and waits for its end without holding a thread.
type pidfd struct {
	file  *os.File
	raw   syscall.RawConn
	pid   int
	child bool // started by this process, which then learns the exit code in any case
}

func newPidfd(fd, pid int, child bool) (*pidfd, error) {
	if err := unix.SetNonblock(fd, true); err != nil { // lets Go's poller have it
		return nil, err
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "pidfd")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &pidfd{file: f, raw: raw, pid: pid, child: child}, nil
}

func openPidfd(pid int) (*pidfd, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return newPidfd(fd, pid, false)
}

func (p *pidfd) signal(sig unix.Signal) error {
	if p == nil { // had ended when it was taken over
		return unix.ESRCH
	}
	var err error
	if cerr := p.raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); cerr != nil {
		return unix.ESRCH // closed: it has ended
	}
	return err
}

// wait returns the exit code (128+n for signal n) when the process has ended;
// known is false if nobody can tell it any more.
func (p *pidfd) wait() (code int, known bool) {
	var status unix.Siginfo
	err := p.raw.Read(func(fd uintptr) bool {
		if p.child {
			for {
				err := unix.Waitid(unix.P_PIDFD, int(fd), &status, unix.WEXITED|unix.WNOHANG, nil)
				if errors.Is(err, unix.EINTR) {
					continue
				}
				if err != nil { // ECHILD: somebody else has waited for it
					p.child = false
					break
				}
				if siginfoPID(&status) == 0 {
					return false
				}
				return true
			}
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(fds, 0)
		return n > 0 && fds[0].Revents&unix.POLLIN != 0
	})
	if err == nil && p.child {
		code, sig := siginfoStatus(&status)
		if sig {
			return 128 + code, true
		}
		return code, true
	}
	ok := false
	if p.raw.Control(func(fd uintptr) { code, ok = exitInfo(fd) }) == nil && ok {
		return code, true
	}
	return 137, false
}

func (p *pidfd) close() { p.file.Close() }

// siginfo of SIGCHLD on 64-bit Linux, after signo, errno, code and padding: pid,
// uid, status (sigaction(2), include/uapi/asm-generic/siginfo.h).
type childInfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
}

func siginfoPID(s *unix.Siginfo) int { return int((*childInfo)(unsafe.Pointer(s)).pid) }

func siginfoStatus(s *unix.Siginfo) (code int, signal bool) {
	c := (*childInfo)(unsafe.Pointer(s))
	const exited = 1 // CLD_EXITED
	return int(c.status), c.code != exited
}

// pidfdInfo is struct pidfd_info of include/uapi/linux/pidfd.h.
type pidfdInfo struct {
	mask             uint64
	cgroupid         uint64
	pid, tgid, ppid  uint32
	ruid, rgid       uint32
	euid, egid       uint32
	suid, sgid       uint32
	fsuid, fsgid     uint32
	exitCode         int32
	coredump, signal uint32
}

// exitInfo asks the kernel (from Linux 6.15) how a process that was not our
// child has ended.
func exitInfo(fd uintptr) (int, bool) {
	const infoExit = 1 << 3 // PIDFD_INFO_EXIT
	info := pidfdInfo{mask: infoExit}
	// _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info), with the size passed.
	req := uintptr(3<<30 | unsafe.Sizeof(info)<<16 | 0xFF<<8 | 11)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, req, uintptr(unsafe.Pointer(&info))); errno != 0 || info.mask&infoExit == 0 {
		return 0, false
	}
	ws := syscall.WaitStatus(info.exitCode)
	if ws.Signaled() {
		return 128 + int(ws.Signal()), true
	}
	return ws.ExitStatus(), true
}

// startTicks is when a process began, in clock ticks since boot: field 22 of
// /proc/PID/stat, counted after the name in parentheses.
func startTicks(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// nsInode identifies a namespace of a process.
func nsInode(pid int, kind string) uint64 {
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), &st) != nil {
		return 0
	}
	return st.Ino
}

// killByMountNS ends every process in a mount namespace: for machines without
// control groups, where that is what a container's descendants have in common.
func killByMountNS(ino uint64) {
	if ino == 0 || ino == nsInode(os.Getpid(), "mnt") {
		return
	}
	ents, _ := os.ReadDir("/proc")
	for _, e := range ents {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid > 1 && nsInode(pid, "mnt") == ino {
			unix.Kill(pid, unix.SIGKILL) //nolint:errcheck // it may have gone
		}
	}
}
