package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// NodeProgram builds fairway-node, with a version that tells one build from another.
func NodeProgram(t testing.TB, version string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fairway-node-"+version)
	cmd := exec.Command("go", "build", "-ldflags=-w -X fairway.dev/fairway/internal/version.Version="+version, "-o", path, "fairway.dev/fairway/cmd/fairway-node")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// withinContainerd is what containerd gives a container that asks for nothing.
var withinContainerd = []string{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
	"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"}

// Containers runs the containers of a manifest as it says, with a containerd
// of the test's own: a program in an image that holds nothing else, on a host's network.
type Containers struct {
	// Mounts are read-only: what is at the key is seen at the value.
	Mounts map[string]string
	// Env is what a kubelet adds to a container's environment, as NAME=value.
	Env []string
	// Vars are what $(NAME) in an argument stands for.
	Vars map[string]string

	host    *Host
	socket  string
	program string
	images  map[string]string // by user, whom ctr takes from the image alone
	cgroup  string            // the parent of the containers' cgroups
}

// NewContainers starts containerd for a program on a host. Both end with the test.
func NewContainers(t testing.TB, host *Host, program string) *Containers {
	t.Helper()
	c := &Containers{host: host, program: program, images: map[string]string{}, cgroup: host.NS.Name()}
	t.Cleanup(c.removeCgroups)
	c.socket = Containerd(t, host.NS)
	return c
}

// image is an image with the program that runs as the user of a manifest.
func (c *Containers) image(t testing.TB, sec *corev1.SecurityContext) string {
	t.Helper()
	user := ""
	if sec.RunAsUser != nil {
		// An image without /etc/passwd knows no group for a user: it is root's.
		user = strconv.FormatInt(*sec.RunAsUser, 10) + ":0"
	} else if sec.RunAsNonRoot != nil && *sec.RunAsNonRoot {
		t.Fatal("runAsNonRoot without runAsUser: the image's user is root, so a kubelet would not start it")
	}
	if c.images[user] == "" {
		c.images[user] = fmt.Sprintf("docker.io/library/fairway-node:%d", len(c.images))
		ProgramImage(t, c.socket, c.images[user], c.program, user)
	}
	return c.images[user]
}

// Command is ctr's for a container of a manifest: with its arguments, user,
// capabilities, read-only root and seccomp profile. It runs as long as the
// container does, hands signals on to it, and has its output and its exit code.
func (c *Containers) Command(t testing.TB, id string, spec *corev1.Container) *exec.Cmd {
	t.Helper()
	args := []string{"--address", c.socket, "--namespace", "k8s.io", "run", "--rm", "--snapshotter", "native",
		"--cgroup", "/" + c.cgroup + "/" + id, "--with-ns", "network:/run/netns/" + c.host.NS.Name()}
	for src, dst := range c.Mounts {
		args = append(args, "--mount", "type=bind,src="+src+",dst="+dst+",options=rbind:ro")
	}
	for _, e := range c.Env {
		args = append(args, "--env", e)
	}
	args = append(args, confine(t, spec.SecurityContext)...)
	args = append(args, c.image(t, spec.SecurityContext), id, "/"+filepath.Base(c.program)) // ctr leaves the entry point out
	for _, a := range spec.Args {
		for name, value := range c.Vars {
			a = strings.ReplaceAll(a, "$("+name+")", value)
		}
		args = append(args, a)
	}
	return exec.Command("ctr", args...)
}

// confine is what a container may, in ctr's words.
func confine(t testing.TB, sec *corev1.SecurityContext) (args []string) {
	t.Helper()
	if sec.Privileged != nil && *sec.Privileged {
		args = append(args, "--privileged")
	}
	if sec.ReadOnlyRootFilesystem != nil && *sec.ReadOnlyRootFilesystem {
		args = append(args, "--read-only")
	}
	if sec.SeccompProfile != nil && sec.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault {
		args = append(args, "--seccomp")
	}
	if caps := sec.Capabilities; caps != nil {
		for _, d := range caps.Drop {
			if d != "ALL" {
				t.Fatalf("capability %s is dropped: the test knows ALL only", d)
			}
			for _, name := range withinContainerd {
				if slices.Contains(caps.Add, corev1.Capability(name)) {
					continue // ctr drops last
				}
				args = append(args, "--cap-drop", "CAP_"+name)
			}
		}
		for _, name := range caps.Add {
			if name == "SYS_RESOURCE" && !mayRaiseLimits(t) {
				continue // this machine does not let anybody have it
			}
			args = append(args, "--cap-add", "CAP_"+string(name))
		}
	}
	return args
}

// Status is a line of the /proc/PID/status of a container's process, such as "Uid".
func (c *Containers) Status(t testing.TB, id, line string) string {
	t.Helper()
	out, err := exec.Command("ctr", "--address", c.socket, "--namespace", "k8s.io", "task", "ls").Output()
	if err != nil {
		t.Fatalf("list containers' processes: %v", err)
	}
	for task := range strings.Lines(string(out)) {
		f := strings.Fields(task)
		if len(f) < 2 || f[0] != id {
			continue
		}
		b, err := os.ReadFile("/proc/" + f[1] + "/status")
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(l, line+":"); ok {
				return strings.Join(strings.Fields(v), " ")
			}
		}
	}
	t.Fatalf("container %s: no process with a status of %s among\n%s", id, line, out)
	return ""
}

// Kill ends a container's process, if there is one.
func (c *Containers) Kill(id string) {
	exec.Command("ctr", "--address", c.socket, "--namespace", "k8s.io", "task", "kill", "--signal", "SIGKILL", id).Run() //nolint:errcheck
}

// removeCgroups removes what runc leaves of the parent, in all hierarchies.
func (c *Containers) removeCgroups() {
	for _, dir := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		list, _ := filepath.Glob(dir + c.cgroup)
		for _, d := range list {
			os.Remove(d) //nolint:errcheck
		}
	}
}

// mayRaiseLimits reports whether CAP_SYS_RESOURCE (linux/capability.h) can be
// given to anybody.
func mayRaiseLimits(t testing.TB) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "CapBnd:\t")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(line, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mask&(1<<24) != 0
}
