package podspec

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/node/cgroup"
	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/node/volumes"
)

func TestBuild(t *testing.T) {
	c := &v1.Container{Name: "c", Image: "host", Command: []string{"run", "$(A)"}, Args: []string{"$(MY_WEB_SERVICE_HOST)"}, WorkingDir: "/w", Stdin: true, TTY: true,
		Env: []v1.EnvVar{{Name: "A", Value: "1"}}, VolumeMounts: []v1.VolumeMount{{Name: "v", MountPath: "/etc/hosts"}}}
	got, err := Build(t.Context(), pod(), c, facts(), map[string]volumes.Volume{"v": {Path: "/vol"}}, Files{Hosts: "/p/hosts", ResolvConf: "/p/resolv", TerminationLog: "/p/term"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Command, []string{"run", "1"}) || !slices.Equal(got.Args, []string{"10.96.0.7"}) || got.WorkingDir != "/w" || !got.Stdin || !got.TTY || got.StdinOnce {
		t.Errorf("%+v", got)
	}
	mounts := map[string]string{}
	for _, m := range got.Mounts {
		if mounts[m.Target] != "" {
			t.Errorf("%s is mounted twice", m.Target)
		}
		mounts[m.Target] = m.Source
	}
	// What the Pod mounts there itself wins.
	want := map[string]string{"/etc/hosts": "/vol", "/etc/resolv.conf": "/p/resolv", "/dev/termination-log": "/p/term"}
	if !reflect.DeepEqual(mounts, want) {
		t.Errorf("mounts %v, want %v", mounts, want)
	}
}

func TestMounts(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(secret), filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	vols := map[string]volumes.Volume{"v": {Path: dir}, "ro": {Path: dir, ReadOnly: true}}
	for _, test := range []struct {
		name string
		m    v1.VolumeMount
		want runtime.Mount
		err  string
	}{
		{"whole", v1.VolumeMount{Name: "v", MountPath: "/m"}, runtime.Mount{Source: dir, Target: "/m"}, ""},
		{"relative", v1.VolumeMount{Name: "v", MountPath: "m"}, runtime.Mount{Source: dir, Target: "/m"}, ""},
		{"read-only", v1.VolumeMount{Name: "v", MountPath: "/m", ReadOnly: true}, runtime.Mount{Source: dir, Target: "/m", ReadOnly: true}, ""},
		{"read-only by kind", v1.VolumeMount{Name: "ro", MountPath: "/m"}, runtime.Mount{Source: dir, Target: "/m", ReadOnly: true}, ""},
		{"subPath, made", v1.VolumeMount{Name: "v", MountPath: "/m", SubPath: "a/b"}, runtime.Mount{Source: dir + "/a/b", Target: "/m"}, ""},
		{"subPathExpr", v1.VolumeMount{Name: "v", MountPath: "/m", SubPathExpr: "x-$(A)"}, runtime.Mount{Source: dir + "/x-1", Target: "/m"}, ""},
		{"a link does not lead out", v1.VolumeMount{Name: "v", MountPath: "/m", SubPath: "out/secret"}, runtime.Mount{Source: dir + filepath.Dir(secret) + "/secret", Target: "/m"}, ""},
		{"propagation", v1.VolumeMount{Name: "v", MountPath: "/m", MountPropagation: ptr.To(v1.MountPropagationHostToContainer)}, runtime.Mount{Source: dir, Target: "/m", Propagation: unix.MS_SLAVE}, ""},
		{"propagation both ways", v1.VolumeMount{Name: "v", MountPath: "/m", MountPropagation: ptr.To(v1.MountPropagationBidirectional)}, runtime.Mount{Source: dir, Target: "/m", Propagation: unix.MS_SHARED}, ""},
		{"no such volume", v1.VolumeMount{Name: "none", MountPath: "/m"}, runtime.Mount{}, `cannot find volume "none"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := mountOf(test.m, vols, map[string]string{"A": "1"})
			if err != nil || test.err != "" {
				if err == nil || test.err == "" || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want %q", err, test.err)
				}
				return
			}
			if got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
			if _, err := os.Stat(got.Source); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLimitsOf(t *testing.T) {
	list := func(cpu, memory string) v1.ResourceList {
		l := v1.ResourceList{}
		if cpu != "" {
			l[v1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[v1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	for _, test := range []struct {
		requests, limits v1.ResourceList
		want             cgroup.Limits
	}{
		{nil, nil, cgroup.Limits{}},
		{list("250m", "64Mi"), nil, cgroup.Limits{CPUShares: 256}},
		{nil, list("2", "1Gi"), cgroup.Limits{CPUShares: 2048, CPUMilli: 2000, MemoryBytes: 1 << 30}},
		{list("500m", ""), list("1", ""), cgroup.Limits{CPUShares: 512, CPUMilli: 1000}},
		{list("1m", ""), nil, cgroup.Limits{CPUShares: 2}}, // the kernel's least
	} {
		c := &v1.Container{Resources: v1.ResourceRequirements{Requests: test.requests, Limits: test.limits}}
		if got := LimitsOf(c); got != test.want {
			t.Errorf("%v, %v: %+v, want %+v", test.requests, test.limits, got, test.want)
		}
	}
}

func TestSecurity(t *testing.T) {
	p := &v1.Pod{Spec: v1.PodSpec{SecurityContext: &v1.PodSecurityContext{RunAsUser: ptr.To(int64(1)), RunAsGroup: ptr.To(int64(2)), SupplementalGroups: []int64{3}, FSGroup: ptr.To(int64(4)), RunAsNonRoot: ptr.To(true),
		SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault}}}}
	var got runtime.Container
	security(p, &v1.Container{}, &got)
	if *got.User != 1 || *got.Group != 2 || !slices.Equal(got.SupplementalGroups, []int64{3, 4}) || !got.NonRoot || got.Privileged || got.Seccomp.Type != v1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("from the Pod: %+v", got)
	}
	got = runtime.Container{}
	security(p, &v1.Container{SecurityContext: &v1.SecurityContext{RunAsUser: ptr.To(int64(0)), RunAsNonRoot: ptr.To(false), Privileged: ptr.To(true), ReadOnlyRootFilesystem: ptr.To(true),
		AllowPrivilegeEscalation: ptr.To(false), SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeUnconfined}, Capabilities: &v1.Capabilities{Add: []v1.Capability{"NET_ADMIN"}, Drop: []v1.Capability{"ALL"}}}}, &got)
	if *got.User != 0 || *got.Group != 2 || got.NonRoot || !got.Privileged || !got.ReadOnlyRoot || !got.NoNewPrivs || !slices.Equal(got.AddCaps, []string{"NET_ADMIN"}) || !slices.Equal(got.DropCaps, []string{"ALL"}) ||
		got.Seccomp.Type != v1.SeccompProfileTypeUnconfined {
		t.Errorf("the container's wins: %+v", got)
	}
	got = runtime.Container{}
	security(&v1.Pod{}, &v1.Container{}, &got)
	if !reflect.DeepEqual(got, runtime.Container{}) {
		t.Errorf("from nothing: %+v", got)
	}
}
