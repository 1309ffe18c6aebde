package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/node/cgroup"
	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/testenv"
)

func newRuntime(t *testing.T) (*Runtime, *daemon) {
	dir := t.TempDir()
	d := &daemon{bin: dir + "/cni/bin", conf: dir + "/etc/net.d", netns: "/proc/self/ns/net", sandboxes: map[string]bool{}, containers: map[string]*api.ContainerStatus{}}
	r := &Runtime{cfg: Config{Prefix: "fw-x", Logger: slog.New(slog.DiscardHandler)}, rt: d, images: d, name: "fake", waiting: map[string][]chan runtime.State{}}
	r.life, r.stop = context.WithCancel(context.Background())
	t.Cleanup(r.stop)
	return r, d
}

func TestNamespaces(t *testing.T) {
	pod, own, machine, target := api.NamespaceMode_POD, api.NamespaceMode_CONTAINER, api.NamespaceMode_NODE, api.NamespaceMode_TARGET
	for _, test := range []struct {
		name string
		s    runtime.Sandbox
		sees string
		want *api.NamespaceOption
	}{
		{"usual", runtime.Sandbox{}, "", &api.NamespaceOption{Network: pod, Ipc: pod, Pid: own}},
		{"the machine's network", runtime.Sandbox{HostNetwork: true}, "", &api.NamespaceOption{Network: machine, Ipc: pod, Pid: own}},
		{"a simulated node's network", runtime.Sandbox{HostNetwork: true, JoinNetNS: "fw-x-node-1"}, "", &api.NamespaceOption{Network: pod, Ipc: pod, Pid: own}},
		{"hostIPC, hostPID", runtime.Sandbox{HostIPC: true, HostPID: true}, "", &api.NamespaceOption{Network: pod, Ipc: machine, Pid: machine}},
		{"processes shared", runtime.Sandbox{SharePID: true}, "", &api.NamespaceOption{Network: pod, Ipc: pod, Pid: pod}},
		{"sees its target", runtime.Sandbox{}, "fake://abc", &api.NamespaceOption{Network: pod, Ipc: pod, Pid: target, TargetId: "abc"}},
		{"sees a process of the machine", runtime.Sandbox{}, "process://abc", &api.NamespaceOption{Network: pod, Ipc: pod, Pid: machine}},
		{"sees them already", runtime.Sandbox{SharePID: true}, "fake://abc", &api.NamespaceOption{Network: pod, Ipc: pod, Pid: pod}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, _ := newRuntime(t)
			if got := r.namespacesOf(&test.s, &runtime.Container{SeeProcesses: test.sees}); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %v\nwant %v", got, test.want)
			}
		})
	}
}

func TestSandboxConfig(t *testing.T) {
	r, _ := newRuntime(t)
	s := &runtime.Sandbox{Node: "node-1", UID: "u", Namespace: "ns", Name: "p", Attempt: 2, Hostname: "h", LogDir: "/log", DNSServers: []string{"10.96.0.10"},
		RunAsUser: ptr.To(int64(7)), Privileged: true}
	c := r.config(s)
	if c.Hostname != "h" || c.Metadata.Attempt != 2 || c.LogDirectory != "/log" || c.DnsConfig.Servers[0] != "10.96.0.10" || c.Linux.CgroupParent != "/fw-x-cri/u" ||
		c.Linux.SecurityContext.RunAsUser.Value != 7 || c.Linux.SecurityContext.RunAsGroup != nil || !c.Linux.SecurityContext.Privileged {
		t.Errorf("%v", c)
	}
	for label, want := range map[string]string{labelPrefix: "fw-x", labelNode: "node-1", labelUID: "u", labelPod: "p", labelNamespace: "ns"} {
		if c.Labels[label] != want {
			t.Errorf("label %s is %q", label, c.Labels[label])
		}
	}
	s.HostNetwork = true
	if got := r.config(s).Hostname; got != "" {
		t.Errorf("hostname on the machine: %q", got)
	}
	s.JoinNetNS = "fw-x-node-1"
	if got := r.config(s).Hostname; got != "node-1" {
		t.Errorf("hostname on a simulated node: %q", got)
	}
}

func TestSeccomp(t *testing.T) {
	for _, test := range []struct {
		profile *v1.SeccompProfile
		want    api.SecurityProfile_ProfileType
		file    string
	}{
		{nil, api.SecurityProfile_Unconfined, ""},
		{&v1.SeccompProfile{Type: v1.SeccompProfileTypeUnconfined}, api.SecurityProfile_Unconfined, ""},
		{&v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault}, api.SecurityProfile_RuntimeDefault, ""},
		{&v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr.To("a/b.json")}, api.SecurityProfile_Localhost, "/var/lib/kubelet/seccomp/a/b.json"},
	} {
		if got := seccomp(test.profile); got.ProfileType != test.want || got.LocalhostRef != test.file {
			t.Errorf("%v: %v", test.profile, got)
		}
	}
}

func TestContainerConfig(t *testing.T) {
	r, _ := newRuntime(t)
	s := &runtime.Sandbox{Node: "node-1", UID: "u", LogDir: "/var/log/p"}
	c := &runtime.Container{Name: "c", Attempt: 3, Image: "nginx", ImageRef: "sha256:1", Command: []string{"run"}, Args: []string{"fast"}, WorkingDir: "/w",
		Env: []string{"A=b=c", "EMPTY="}, LogPath: "/var/log/p/c/3.log", Stdin: true, TTY: true, OOMScoreAdj: 5,
		Mounts: []runtime.Mount{{Source: "/a", Target: "/x", ReadOnly: true}, {Source: "/b", Target: "/y", Propagation: unix.MS_SLAVE}, {Source: "/c", Target: "/z", Propagation: unix.MS_SHARED}},
		User:   ptr.To(int64(1000)), SupplementalGroups: []int64{5}, NoNewPrivs: true, ReadOnlyRoot: true, AddCaps: []string{"NET_ADMIN"}, DropCaps: []string{"ALL"},
		Limits: cgroup.Limits{CPUShares: 512, CPUMilli: 250, MemoryBytes: 1 << 20}}
	got, err := r.containerConfig(s, c)
	if err != nil {
		t.Fatal(err)
	}
	if got.LogPath != "c/3.log" || got.Image.Image != "sha256:1" || got.Image.UserSpecifiedImage != "nginx" || got.Metadata.Attempt != 3 || !got.Stdin || !got.Tty || got.StdinOnce {
		t.Errorf("%v", got)
	}
	if len(got.Envs) != 2 || got.Envs[0].Key != "A" || string(got.Envs[0].Value) != "b=c" || got.Envs[1].Key != "EMPTY" {
		t.Errorf("environment %v", got.Envs)
	}
	if l := got.Linux.Resources; l.CpuShares != 512 || l.CpuPeriod != 100_000 || l.CpuQuota != 25_000 || l.MemoryLimitInBytes != 1<<20 || l.OomScoreAdj != 5 {
		t.Errorf("resources %v", l)
	}
	var mounts []string
	for _, m := range got.Mounts {
		mounts = append(mounts, fmt.Sprintf("%s%s %t %s", m.HostPath, m.ContainerPath, m.Readonly, m.Propagation))
	}
	want := []string{"/a/x true PROPAGATION_PRIVATE", "/b/y false PROPAGATION_HOST_TO_CONTAINER", "/c/z false PROPAGATION_BIDIRECTIONAL"}
	if !slices.Equal(mounts, want) {
		t.Errorf("mounts %q, want %q", mounts, want)
	}
	sc := got.Linux.SecurityContext
	if sc.RunAsUser.Value != 1000 || sc.RunAsGroup != nil || !sc.NoNewPrivs || !sc.ReadonlyRootfs || !slices.Equal(sc.Capabilities.AddCapabilities, c.AddCaps) || len(sc.MaskedPaths) == 0 {
		t.Errorf("security %v", sc)
	}
	c.Privileged, c.Limits.CPUMilli = true, 1
	got, _ = r.containerConfig(s, c)
	if len(got.Linux.SecurityContext.MaskedPaths)+len(got.Linux.SecurityContext.ReadonlyPaths) > 0 {
		t.Error("paths are hidden from a privileged container")
	}
	if q := got.Linux.Resources.CpuQuota; q != 1000 {
		t.Errorf("a quota of %d µs, less than the kernel takes", q)
	}
}

func TestMatching(t *testing.T) {
	for _, test := range []struct {
		server, image string
		want          bool
	}{
		{"https://index.docker.io/v1/", "nginx", true},
		{"docker.io", "library/nginx", true},
		{"docker.io", "docker.io/nginx", true},
		{"registry.example.com", "registry.example.com/a/b", true},
		{"https://registry.example.com/v2/", "registry.example.com/a/b", true},
		{"registry.example.com/a", "registry.example.com/a/b", true},
		{"registry.example.com/a", "registry.example.com/ab", false},
		{"*.example.com", "registry.example.com/a", true},
		{"*.example.com", "example.com/a", false},
		{"registry.example.com", "example.com/a", false},
		{"docker.io.example.com", "nginx", false},
		{"localhost:5000", "localhost:5000/a", true},
		{"localhost:5000", "localhost:5001/a", false},
		{"localhost", "localhost/a", true},
		{"", "nginx", false},
	} {
		if got := len(matching([]runtime.Auth{{ServerAddress: test.server}}, test.image)) == 1; got != test.want {
			t.Errorf("credentials for %s used for %s: %t", test.server, test.image, got)
		}
	}
	got := matching([]runtime.Auth{{ServerAddress: "example.com", Username: "short"}, {ServerAddress: "example.com/team", Username: "long"}}, "example.com/team/app")
	if len(got) != 2 || got[0].Username != "long" {
		t.Errorf("order %v", got)
	}
}

func TestEnsureImage(t *testing.T) {
	for _, test := range []struct {
		image, pull string
		reason      string // of an error
		pulled      bool
	}{
		{"there", "IfNotPresent", "", false},
		{"there", "Always", "", true},
		{"missing", "IfNotPresent", "", true},
		{"missing", "Never", "ErrImageNeverPull", false},
	} {
		r, d := newRuntime(t)
		ref, err := r.EnsureImage(t.Context(), nil, test.image, test.pull, nil)
		reason := ""
		if ie, ok := err.(*runtime.ImageError); ok {
			reason = ie.Reason
		}
		if reason != test.reason || (err == nil) != (ref != "") {
			t.Errorf("%+v: %q, %v", test, ref, err)
		}
		if got := d.pulled != nil; got != test.pulled {
			t.Errorf("%+v: pulled %t", test, got)
		}
	}
}

// A container's life as the daemon tells it, and an end that is noticed.
func TestLife(t *testing.T) {
	r, d := newRuntime(t)
	s := &runtime.Sandbox{Node: "node-1", UID: "u", Name: "p", Namespace: "ns", LogDir: "/log"}
	if err := r.CreateSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if s.NetNSPath != d.netns {
		t.Errorf("network namespace %q", s.NetNSPath)
	}
	st, err := r.Start(t.Context(), s, &runtime.Container{Name: "c", LogPath: "/log/c/0.log"})
	if err != nil || !st.Running || !strings.HasPrefix(st.ID, "fake://") || st.SandboxUID != "u" {
		t.Fatalf("%+v, %v", st, err)
	}
	for node, n := range map[string]int{"node-1": 1, "node-2": 0} {
		if l, err := r.List(t.Context(), node); err != nil || len(l) != n {
			t.Errorf("%s: %+v, %v", node, l, err)
		}
	}
	over := make(chan runtime.State, 1)
	go func() {
		st, _ := r.Wait(context.Background(), st.ID)
		over <- st
	}()
	if err := r.Stop(t.Context(), st.ID, 0, 1500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	select {
	case st := <-over:
		if st.Running || st.FinishedAt.IsZero() || st.ExitCode != 102 { // 1.5 s are 2 to the CRI
			t.Errorf("%+v", st)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the end is not noticed")
	}
	if err := r.Signal(t.Context(), st.ID, unix.SIGUSR1); err == nil {
		t.Error("a signal that the CRI cannot send is no error")
	}
	if err := r.RemoveSandbox(t.Context(), s); err != nil || len(d.sandboxes) != 0 {
		t.Errorf("%d sandboxes left, %v", len(d.sandboxes), err)
	}
}

func TestCNIFiles(t *testing.T) {
	r, d := newRuntime(t)
	ctx := t.Context()
	if err := r.ensureCNI(ctx); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{d.conf + "/" + confFile, d.bin + "/fairway", d.bin + "/loopback"} {
		if b, err := os.ReadFile(path); err != nil || !bytes.Contains(b, []byte(marker)) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := os.WriteFile(d.bin+"/loopback", []byte("somebody's"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.ensureCNI(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.removeCNI(ctx); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(d.bin + "/*"); !slices.Equal(left, []string{d.bin + "/loopback"}) {
		t.Errorf("left %v", left)
	}
	if _, err := os.Stat(d.conf); err == nil {
		t.Errorf("%s is left", d.conf)
	}
	if err := os.MkdirAll(d.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.conf+"/10-calico.conflist", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.ensureCNI(ctx); err == nil || !strings.Contains(err.Error(), "10-calico.conflist") {
		t.Errorf("a network of another's: %v", err)
	}
	if _, err := os.Stat(d.bin + "/fairway"); err == nil {
		t.Error("and it was written to")
	}
}

// The plugin speaks the protocol: JSON for every command.
func TestPlugin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fairway")
	if err := os.WriteFile(path, []byte(plugin), 0o755); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{"VERSION": "supportedVersions", "ADD": "ips", "DEL": "", "CHECK": ""} {
		cmd := exec.Command("/bin/sh", path)
		cmd.Stdin = strings.NewReader("{}")
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_IFNAME=eth0", "CNI_NETNS=/proc/1/ns/net", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_UID=of-nobody")
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%s: %v", command, err)
		}
		if want == "" {
			if len(out) > 0 {
				t.Errorf("%s: %q", command, out)
			}
			continue
		}
		var got map[string]any
		if err := json.Unmarshal(out, &got); err != nil || got[want] == nil {
			t.Errorf("%s: %q, %v", command, out, err)
		}
	}
}

// A sandbox that has landed elsewhere is not used: it might be in the machine's
// own network.
func TestJoinIsChecked(t *testing.T) {
	testenv.RequireRoot(t)
	name := fmt.Sprintf("fw-t-%d-join", os.Getpid())
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Delete(name) //nolint:errcheck
	defer ns.Close()
	machine, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	r, d := newRuntime(t)
	d.netns = machine.Path()
	s := &runtime.Sandbox{Node: "node-1", UID: fmt.Sprintf("uid-%d", os.Getpid()), Name: "p", Namespace: "ns", HostNetwork: true, JoinNetNS: name}
	if err := r.CreateSandbox(t.Context(), s); err == nil || !strings.Contains(err.Error(), name) || len(d.sandboxes) != 0 {
		t.Errorf("%d sandboxes, error %v", len(d.sandboxes), err)
	}
	if _, err := os.Stat(filepath.Join(joinDir, s.UID)); err == nil {
		t.Error("its file is left")
	}
	d.netns = nsPath(name)
	if err := r.CreateSandbox(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := sameNS(s.NetNSPath, nsPath(name)); err != nil {
		t.Error(err)
	}
	if err := r.removeCNI(t.Context()); err != nil {
		t.Error(err)
	}
}
