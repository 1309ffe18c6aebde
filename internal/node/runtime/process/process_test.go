package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/node/cgroup"
	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/testenv"
)

type env struct {
	*Runtime
	cfg  Config
	sb   *runtime.Sandbox
	dir  string
	host *testenv.Host
}

func newEnv(t *testing.T, withCgroups bool) *env {
	t.Helper()
	testenv.RequireRoot(t)
	e := &env{host: testenv.NewHost(t, "pod"), dir: t.TempDir()}
	e.cfg = Config{StateDir: e.dir + "/state"}
	if withCgroups {
		e.cfg.Cgroups = cgroup.New(e.host.Name)
	}
	e.sb = &runtime.Sandbox{Node: "n", UID: "uid-1", Name: "pod", Hostname: "pod-1", NetNS: e.host.Name}
	e.open(t)
	t.Cleanup(func() {
		e.Close()
		if err := Cleanup(e.cfg); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if e.cfg.Cgroups != nil {
			if _, err := os.Stat("/sys/fs/cgroup/unified/" + e.host.Name); err == nil {
				t.Error("control groups are left")
			}
		}
	})
	return e
}

func (e *env) open(t *testing.T) {
	t.Helper()
	r, err := New(e.cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.Runtime = r
	if err := r.CreateSandbox(t.Context(), e.sb); err != nil {
		t.Fatal(err)
	}
}

func (e *env) start(t *testing.T, c runtime.Container) string {
	t.Helper()
	if c.Name == "" {
		c.Name = "c"
	}
	c.LogPath = filepath.Join(e.dir, c.Name+".log")
	st, err := e.Start(t.Context(), e.sb, &c)
	if err != nil {
		t.Fatal(err)
	}
	return st.ID
}

func (e *env) wait(t *testing.T, id string) runtime.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	st, err := e.Wait(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// log returns the text of a container's log without its times.
func (e *env) log(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(line, " ")
		out.WriteString(rest)
	}
	return out.String()
}

func (e *env) waitLog(t *testing.T, name, want string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if strings.Contains(e.log(t, name), want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("log of %s has no %q:\n%s", name, want, e.log(t, name))
		}
	}
}

func sh(script string) []string { return []string{"sh", "-c", script} }

type buffer struct{ bytes.Buffer }

func (*buffer) Close() error { return nil }

func TestContainer(t *testing.T) {
	for _, withCgroups := range []bool{true, false} {
		t.Run(fmt.Sprintf("cgroups=%t", withCgroups), func(t *testing.T) { testContainer(t, withCgroups) })
	}
}

func testContainer(t *testing.T, withCgroups bool) {
	e := newEnv(t, withCgroups)
	vol := t.TempDir()
	os.WriteFile(vol+"/file", []byte("content\n"), 0o644) //nolint:errcheck
	hosts := vol + "/hosts"
	os.WriteFile(hosts, []byte("192.0.2.9 friend\n"), 0o644) //nolint:errcheck

	t.Run("namespaces, mounts, environment, exit code", func(t *testing.T) {
		target := "/fairway-test-" + strconv.Itoa(os.Getpid()) + "/deep/mount"
		id := e.start(t, runtime.Container{
			Command: sh("hostname; cat " + target + "/file; cat /etc/hosts; echo $GREETING in $PWD; ls /sys/class/net >/dev/null; cat /proc/net/dev | wc -l; touch " + target + "/x || echo refused; echo oops >&2; printf end; exit 3"),
			Env:     []string{"GREETING=nobody", "GREETING=hello"}, WorkingDir: "/tmp",
			Mounts: []runtime.Mount{{Source: vol, Target: target, ReadOnly: true}, {Source: hosts, Target: "/etc/hosts"}},
		})
		if st := e.wait(t, id); st.ExitCode != 3 || st.Running || st.Unknown {
			t.Errorf("state %+v", st)
		}
		got := e.log(t, "c")
		for _, want := range []string{"stdout F pod-1\n", "stdout F content\n", "192.0.2.9 friend\n", "hello in /tmp\n", "stdout F 3\n", "refused\n", "stderr F oops\n", "stdout F end\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("log lacks %q:\n%s", want, got)
			}
		}
		if b, _ := os.ReadFile("/etc/hosts"); strings.Contains(string(b), "friend") {
			t.Error("the mount is seen outside")
		}
		if err := e.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := os.Stat(filepath.Dir(filepath.Dir(target))); err == nil {
				// The outer clean-up removes it; it runs later than this one.
				e.Close()
				openMountpoints(e.cfg.StateDir + "/mountpoints.json").removeAll() //nolint:errcheck
				if _, err := os.Stat(filepath.Dir(filepath.Dir(target))); err == nil {
					t.Error("a mount point is left on the machine")
				}
				e.open(t)
			}
		})
	})

	t.Run("user and capabilities", func(t *testing.T) {
		uid := int64(65534)
		id := e.start(t, runtime.Container{Name: "user", Command: sh("id -u; grep CapBnd /proc/self/status; grep NoNewPrivs /proc/self/status; echo x > /dev/stdout"),
			User: &uid, Group: &uid, DropCaps: []string{"ALL"}, AddCaps: []string{"NET_BIND_SERVICE"}, NoNewPrivs: true})
		if st := e.wait(t, id); st.ExitCode != 0 {
			t.Errorf("state %+v", st)
		}
		got := e.log(t, "user")
		for _, want := range []string{"65534", "CapBnd:\t0000000000000400", "NoNewPrivs:\t1", "F x\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("log lacks %q:\n%s", want, got)
			}
		}
	})

	t.Run("errors say what is wrong", func(t *testing.T) {
		for _, c := range []struct {
			c    runtime.Container
			want string
		}{
			{runtime.Container{Command: []string{"no-such-command"}}, "executable file not found in $PATH"},
			{runtime.Container{Command: []string{"/etc/passwd"}}, "permission denied"},
			{runtime.Container{}, "no command"},
			{runtime.Container{Command: sh("true"), WorkingDir: "/no/such/dir"}, "no such file or directory"},
			{runtime.Container{Command: sh("true"), NonRoot: true}, "runAsNonRoot"},
		} {
			c.c.Name, c.c.LogPath = "bad", e.dir+"/bad.log"
			if _, err := e.Start(t.Context(), e.sb, &c.c); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v, want %q", c.c.Command, err, c.want)
			}
		}
	})

	t.Run("signals and grace", func(t *testing.T) {
		id := e.start(t, runtime.Container{Name: "polite", Command: sh("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done")})
		e.waitLog(t, "polite", "ready")
		if err := e.Stop(t.Context(), id, 0, time.Minute); err != nil {
			t.Fatal(err)
		}
		if st := e.wait(t, id); st.ExitCode != 7 {
			t.Errorf("exit code %d, want 7", st.ExitCode)
		}
		id = e.start(t, runtime.Container{Name: "deaf", Command: sh("trap '' TERM; sleep 1000 & echo child $!; echo ready; while :; do sleep 1; done")})
		e.waitLog(t, "deaf", "ready")
		if err := e.Stop(t.Context(), id, 0, 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if st := e.wait(t, id); st.ExitCode != 137 {
			t.Errorf("exit code %d, want 137", st.ExitCode)
		}
		noneLeft(t, e, "deaf")
	})

	t.Run("descendants go with the first process", func(t *testing.T) {
		id := e.start(t, runtime.Container{Name: "parent", Command: sh("setsid sleep 1000 & echo child $!; exit 0")})
		if st := e.wait(t, id); st.ExitCode != 0 {
			t.Errorf("state %+v", st)
		}
		noneLeft(t, e, "parent")
	})

	t.Run("exec and attach", func(t *testing.T) {
		id := e.start(t, runtime.Container{Name: "shell", Stdin: true, Command: sh("while read l; do echo got $l; done"), Env: []string{"A=b"},
			Mounts: []runtime.Mount{{Source: hosts, Target: "/etc/hosts"}}})
		var out, errb buffer
		code, err := e.Exec(t.Context(), id, sh("cat; cat /etc/hosts; echo $A; hostname; echo err >&2; exit 5"), runtime.Streams{Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errb})
		if err != nil || code != 5 || out.String() != "in\n192.0.2.9 friend\nb\npod-1\n" || errb.String() != "err\n" {
			t.Errorf("exec: code %d, err %v, stdout %q, stderr %q", code, err, out.String(), errb.String())
		}
		out.Reset()
		code, err = e.Exec(t.Context(), id, sh("test -t 0 && echo terminal; stty size"), runtime.Streams{TTY: true, Stdout: &out, Resize: sizes(24, 80)})
		if err != nil || code != 0 || !strings.Contains(out.String(), "terminal") {
			t.Errorf("exec in a terminal: code %d, err %v, stdout %q", code, err, out.String())
		}
		if err := e.Attach(t.Context(), id, runtime.Streams{Stdin: strings.NewReader("line\n")}); err != nil {
			t.Fatal(err)
		}
		e.waitLog(t, "shell", "got line")
		e.Stop(t.Context(), id, 0, 0) //nolint:errcheck
	})

	t.Run("taken over by a second process", func(t *testing.T) {
		id := e.start(t, runtime.Container{Name: "lasting", Command: sh("echo one; trap 'echo bye; exit 9' TERM; while :; do sleep 0.05; echo tick; done")})
		e.waitLog(t, "lasting", "one")
		e.Close()
		e.open(t)
		states, err := e.List(t.Context(), "n")
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, st := range states {
			found = found || st.ID == id && st.Running
		}
		if !found {
			t.Fatalf("not found running: %+v", states)
		}
		before := len(e.log(t, "lasting"))
		for deadline := time.Now().Add(10 * time.Second); len(e.log(t, "lasting")) == before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the log does not go on")
			}
		}
		if err := e.Stop(t.Context(), id, unix.SIGTERM, time.Minute); err != nil {
			t.Fatal(err)
		}
		if st := e.wait(t, id); st.ExitCode != 9 && !st.Unknown {
			t.Errorf("state %+v", st)
		}
		if !strings.Contains(e.log(t, "lasting"), "bye") {
			t.Error("the last words are lost")
		}
	})

	t.Run("sandbox goes with all in it", func(t *testing.T) {
		e.start(t, runtime.Container{Name: "x", Command: sh("sleep 1000")})
		e.start(t, runtime.Container{Name: "y", Command: sh("sleep 1000")})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := e.RemoveSandbox(ctx, e.sb); err != nil {
			t.Fatal(err)
		}
		if l, _ := e.List(t.Context(), "n"); len(l) != 0 {
			t.Errorf("left: %+v", l)
		}
	})
}

func sizes(rows, cols uint16) <-chan unix.Winsize {
	c := make(chan unix.Winsize, 1)
	c <- unix.Winsize{Row: rows, Col: cols}
	close(c)
	return c
}

// noneLeft waits for the process that a container has reported as "child N".
func noneLeft(t *testing.T, e *env, name string) {
	t.Helper()
	_, rest, ok := strings.Cut(e.log(t, name), "child ")
	if !ok {
		t.Fatalf("no child in %q", e.log(t, name))
	}
	pid, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); unix.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); strings.Contains(string(b), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is left of container %s", pid, name)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	testenv.RequireRoot(b)
	host := testenv.NewHost(b, "pod")
	cfg := Config{StateDir: b.TempDir(), Cgroups: cgroup.New(host.Name)}
	r, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer Cleanup(cfg) //nolint:errcheck
	defer r.Close()
	sb := &runtime.Sandbox{Node: "n", UID: "u", NetNS: host.Name, Hostname: "h"}
	n := 0
	for b.Loop() {
		n++
		st, err := r.Start(b.Context(), sb, &runtime.Container{Name: fmt.Sprintf("c%d", n), LogPath: cfg.StateDir + "/log", Command: []string{"/bin/true"}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.Wait(b.Context(), st.ID); err != nil {
			b.Fatal(err)
		}
		r.Remove(b.Context(), st.ID) //nolint:errcheck
	}
}
