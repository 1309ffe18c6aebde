package proxy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/internal/testenv"
)

// withinContainerd is what containerd gives a container that asks for nothing.
var withinContainerd = []string{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
	"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"}

// container runs the DaemonSet's containers with containerd, in an image with
// the program alone, in the node's network.
type container struct {
	*cluster
	socket string
	entry  string // the image's entry point, which ctr leaves out
	config string // a directory with what the ConfigMap kube-proxy holds
}

const (
	imageName      = "docker.io/library/fairway-node:latest"
	configMountDir = "/var/lib/kube-proxy"
)

// command is ctr's for a container of the manifest, with its arguments,
// capabilities, read-only root and seccomp profile.
func (c *container) command(t *testing.T, id string, spec *corev1.Container) *exec.Cmd {
	t.Helper()
	args := []string{"--address", c.socket, "--namespace", "k8s.io", "run", "--rm", "--snapshotter", "native",
		"--cgroup", "/" + c.cgroup() + "/" + id,
		"--with-ns", "network:/run/netns/" + c.node.NS.Name(),
		"--mount", "type=bind,src=" + c.config + ",dst=" + configMountDir + ",options=rbind:ro"}
	sec := spec.SecurityContext
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
	args = append(args, imageName, id, c.entry)
	for _, a := range spec.Args {
		args = append(args, strings.ReplaceAll(a, "$(NODE_NAME)", "node-1"))
	}
	return exec.Command("ctr", args...)
}

// cgroup is the parent of the containers' cgroups.
func (c *container) cgroup() string { return c.node.NS.Name() }

// removeCgroups removes what runc leaves of it, in all hierarchies.
func (c *container) removeCgroups() {
	for _, dir := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		list, _ := filepath.Glob(dir + c.cgroup())
		for _, d := range list {
			os.Remove(d)
		}
	}
}

// mayRaiseLimits reports whether CAP_SYS_RESOURCE (linux/capability.h) can be
// given to anybody.
func mayRaiseLimits(t *testing.T) bool {
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

// run starts the container and waits until the table is programmed.
func (c *container) run(t *testing.T, id string, spec *corev1.Container) *process {
	t.Helper()
	cmd := c.command(t, id, spec)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, exited: make(chan error, 1)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.follow(out)
	t.Cleanup(func() { c.kill(id); <-p.exited })
	p.await(t, "")
	return p
}

// kill ends a container's process, if there is one.
func (c *container) kill(id string) {
	exec.Command("ctr", "--address", c.socket, "--namespace", "k8s.io", "task", "kill", "--signal", "SIGKILL", id).Run()
}

// TestContainer runs the containers of deploy/proxy/daemonset.yaml as it says:
// the image from scratch, the capabilities given and no other, the root
// read-only, the system calls of the default profile.
func TestContainer(t *testing.T) {
	testenv.RequireContainerd(t)
	manifest, err := os.ReadFile("../../deploy/proxy/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var ds appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(manifest, &ds); err != nil {
		t.Fatal(err)
	}
	pod := ds.Spec.Template.Spec
	c := &container{cluster: newCluster(t), config: t.TempDir()}
	kubeconfig, err := os.ReadFile(c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"kubeconfig.conf": kubeconfig,
		// As kubeadm makes it, shortened.
		"config.conf": []byte(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}
clusterCIDR: 10.244.0.0/16
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 12345s, tcpCloseWaitTimeout: 0s}
mode: nftables
oomScoreAdj: 0
`),
	} {
		if err := os.WriteFile(filepath.Join(c.config, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(c.removeCgroups)
	c.socket = testenv.Containerd(t, c.node.NS)
	program := build(t, "image")
	c.entry = "/" + filepath.Base(program)
	testenv.ProgramImage(t, c.socket, imageName, program)

	if out, err := c.command(t, "limits", &pod.InitContainers[0]).CombinedOutput(); err != nil {
		t.Fatalf("init container: %v\n%s", err, out)
	}
	var timeout []byte
	if err := c.node.NS.Do(func() (err error) {
		timeout, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
		return err
	}); err != nil || strings.TrimSpace(string(timeout)) != "12345" {
		t.Errorf("the init container leaves a timeout of %q, %v, want 12345", timeout, err)
	}

	first := c.run(t, "proxy-1", &pod.Containers[0])
	l := c.load(t)
	more := func(what string) {
		t.Helper()
		from := l.done.Load()
		for deadline := time.Now().Add(time.Minute); l.done.Load() < from+100; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: no more connections", what)
			}
		}
	}
	more("programmed")
	c.kill("proxy-1")
	more("without a proxy")
	if err := <-first.exited; err == nil {
		t.Error("the killed container says that all was well")
	} else {
		first.exited <- err
	}
	second := c.run(t, "proxy-2", &pod.Containers[0])
	c.setEndpoints(1, 2)
	more("another proxy")
	second.cmd.Process.Signal(syscall.SIGTERM) // which ctr hands on
	if err := <-second.exited; err != nil {
		t.Errorf("asked to end: %v", err)
	} else {
		second.exited <- err
	}
	l.stop()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) > 0 {
		t.Errorf("%d connections failed: %s", len(l.failed), l.failed[0])
	}
	for _, p := range []*process{first, second} {
		if s := p.text(); strings.Contains(s, "level=ERROR") || strings.Contains(s, "level=WARN") {
			t.Errorf("the proxy complains:\n%s", s)
		}
	}
}
