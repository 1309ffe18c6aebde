package testenv

import (
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

const insideEnv = "FAIRWAY_TEST_INSIDE"

// Inside runs the calling test in a process of its own whose whole network is a
// host's: for parts that use the namespace their process was started in. In the
// test's own process it reports what the other one did and answers false; in
// the other one it answers true and the test goes on.
//
//	func TestX(t *testing.T) {
//		if !testenv.Inside(t, nil) {
//			return
//		}
//		… // here the machine is a fresh namespace
//
// prepare, if given, gets the host before the test runs in it, to connect it
// with others.
func Inside(t *testing.T, prepare func(h *Host)) bool {
	t.Helper()
	RequireRoot(t)
	if os.Getenv(insideEnv) == t.Name() {
		return true
	}
	h := NewHost(t, "machine")
	if prepare != nil {
		prepare(h)
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v=" + map[bool]string{true: "true", false: "false"}[testing.Verbose()]}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	errc := make(chan error, 1)
	go func() {
		// The child dies with this thread, so the thread stays until it has ended.
		runtime.LockOSThread()
		if err := unix.Setns(h.NS.Fd(), unix.CLONE_NEWNET); err != nil {
			errc <- err
			return
		}
		errc <- cmd.Run()
	}()
	if err := <-errc; err != nil {
		t.Fatalf("inside host %s: %v", h.Name, err)
	}
	return false
}
