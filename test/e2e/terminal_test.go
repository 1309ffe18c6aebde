package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testTerminal: Ctrl-C at a terminal goes to the remote program where there is
// one with a terminal, and ends kubectl at once where there is none.
func (c *Cluster) testTerminal(t *testing.T) {
	const ctrlC = "\x03"
	t.Run("exec", func(t *testing.T) {
		s := c.terminal(t, "exec", "-it", "client", "--", "sh")
		s.say("# ", "trap 'echo interr''upted' INT; echo rea''dy; sleep 1000\n")
		s.say("ready", ctrlC)
		s.say("interrupted", "exit 7\n")
		if code := s.wait(); code != 7 {
			t.Errorf("exit code %d, want that of the remote shell, 7\n%s", code, s.seen)
		}
	})
	// kubectl's own codes: logs ends with 1, port-forward regularly.
	t.Run("logs", func(t *testing.T) {
		s := c.terminal(t, "logs", "-f", "deployment/web")
		s.say("\n", ctrlC) // the first line is there
		if code := s.wait(); code != 1 {
			t.Errorf("exit code %d, want 1\n%s", code, s.seen)
		}
	})
	t.Run("port-forward", func(t *testing.T) {
		s := c.terminal(t, "port-forward", "deployment/web", ":8080")
		s.say("Forwarding from", ctrlC)
		if code := s.wait(); code != 0 {
			t.Errorf("exit code %d, want 0\n%s", code, s.seen)
		}
	})
}

// session is a program at a terminal.
type session struct {
	t    *testing.T
	cmd  *exec.Cmd
	pty  *os.File
	read chan string
	seen string
}

// terminal runs `fairway kubectl args…` at a terminal of its own, on the
// cluster's machine.
func (c *Cluster) terminal(t *testing.T, args ...string) *session {
	t.Helper()
	bin, err := binary("fairway")
	if err != nil {
		t.Fatal(err)
	}
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(pty.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(pty.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	s := &session{t: t, pty: pty, read: make(chan string, 1000), cmd: c.Command(bin, append([]string{"kubectl"}, args...)...)}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = tty, tty, tty
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Host.NS.Do(s.cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cmd.Process.Kill() //nolint:errcheck // it has ended if all is well
		pty.Close()
	})
	go func() {
		defer close(s.read)
		buf := make([]byte, 4096)
		for {
			n, err := pty.Read(buf)
			if err != nil {
				return
			}
			s.read <- string(buf[:n])
		}
	}()
	return s
}

// say waits until the program has printed text since the last call, and types
// keys then.
func (s *session) say(text, keys string) {
	s.t.Helper()
	late := time.After(waitLong)
	for got := ""; ; {
		select {
		case more, ok := <-s.read:
			got, s.seen = got+more, s.seen+more
			if !ok {
				s.t.Fatalf("ended before it said %q:\n%s", text, s.seen)
			}
		case <-late:
			s.t.Fatalf("never said %q:\n%s", text, s.seen)
		}
		if strings.Contains(got, text) {
			break
		}
	}
	if _, err := s.pty.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// wait answers with the exit code, 128 and more for a signal. The program must
// end soon: there is nothing to wait for.
func (s *session) wait() int {
	s.t.Helper()
	stuck := time.AfterFunc(20*time.Second, func() {
		s.t.Error("does not end after the last key")
		s.cmd.Process.Kill() //nolint:errcheck
	})
	defer stuck.Stop()
	err := s.cmd.Wait()
	for more := range s.read {
		s.seen += more
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	if ws := s.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.cmd.ProcessState.ExitCode()
}
