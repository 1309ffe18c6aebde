package cgroup

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	const unified = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	const hybrid = `35 24 0:30 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
36 24 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 master:1 - cgroup cgroup rw,cpu,cpuacct
37 24 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
38 24 0:33 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
`
	for _, test := range []struct {
		name, mountinfo string
		readOnly        string
		unified         string
		v1              map[string]string
	}{
		{"unified", unified, "", "/sys/fs/cgroup", map[string]string{}},
		{"hybrid", hybrid, "", "/sys/fs/cgroup/unified", map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct", "memory": "/sys/fs/cgroup/memory"}},
		{"read-only", hybrid, "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct"}},
		{"none", "24 1 8:1 / / rw - ext4 /dev/sda1 rw\nnonsense\n", "", "", map[string]string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &Manager{v1: map[string]string{}}
			m.find(strings.NewReader(test.mountinfo), func(dir string) bool { return dir != test.readOnly })
			if m.unified != test.unified || !reflect.DeepEqual(m.v1, test.v1) {
				t.Errorf("unified %q, version 1 %v", m.unified, m.v1)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for _, test := range []struct {
		name     string
		l        Limits
		one, two []setting
	}{
		{"none", Limits{}, nil, nil},
		{"one CPU asked for", Limits{CPUShares: 1024}, []setting{{"cpu", "cpu.shares", "1024"}}, []setting{{"cpu", "cpu.weight", "39"}}},
		{"the least", Limits{CPUShares: 2}, []setting{{"cpu", "cpu.shares", "2"}}, []setting{{"cpu", "cpu.weight", "1"}}},
		{"the most", Limits{CPUShares: 262144}, []setting{{"cpu", "cpu.shares", "262144"}}, []setting{{"cpu", "cpu.weight", "10000"}}},
		{"half a CPU", Limits{CPUMilli: 500}, []setting{{"cpu", "cpu.cfs_quota_us", "50000"}}, []setting{{"cpu", "cpu.max", "50000 100000"}}},
		{"less than the kernel takes", Limits{CPUMilli: 1}, []setting{{"cpu", "cpu.cfs_quota_us", "1000"}}, []setting{{"cpu", "cpu.max", "1000 100000"}}},
		{"memory and processes", Limits{MemoryBytes: 1 << 30, Pids: 9}, []setting{{"memory", "memory.limit_in_bytes", "1073741824"}, {"pids", "pids.max", "9"}},
			[]setting{{"memory", "memory.max", "1073741824"}, {"pids", "pids.max", "9"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.l.version1(); !slices.Equal(got, test.one) {
				t.Errorf("version 1: %v, want %v", got, test.one)
			}
			if got := test.l.version2(); !slices.Equal(got, test.two) {
				t.Errorf("version 2: %v, want %v", got, test.two)
			}
		})
	}
}

func TestLacks(t *testing.T) {
	m := &Manager{control: map[string]bool{"memory": true}, v1: map[string]string{"pids": "/x"}}
	if got := m.Lacks(Limits{CPUMilli: 1, MemoryBytes: 1, Pids: 1}); !slices.Equal(got, []string{"cpu"}) {
		t.Errorf("lacks %v", got)
	}
	// A weight is a preference: nothing is promised.
	if got := m.Lacks(Limits{CPUShares: 1024}); len(got) > 0 {
		t.Errorf("lacks %v", got)
	}
}

// Without control groups every call succeeds and does nothing.
func TestNone(t *testing.T) {
	m := &Manager{name: "fw-x"}
	g, err := m.Create("a/b", Limits{CPUMilli: 1, MemoryBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	f, err := g.Open()
	if g.CanKill() || g.OOMKilled() || f != nil || err != nil || g.Kill() != nil || g.EnterThread() != nil || len(g.Procs()) > 0 || g.Remove() != nil || m.Cleanup() != nil {
		t.Errorf("group %+v does something", g)
	}
	var none *Group
	if none.CanKill() || none.OOMKilled() || none.Remove() != nil || none.EnterThread() != nil {
		t.Error("no group does something")
	}
}

func TestOOMKilled(t *testing.T) {
	for _, test := range []struct {
		file, text string
		want       bool
	}{
		{"memory.events", "low 0\noom 1\noom_kill 0\n", false},
		{"memory.events", "low 0\noom 1\noom_kill 2\n", true},
		{"memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", true},
		{"memory.oom_control", "oom_kill_disable 1\nunder_oom 0\noom_kill 0\n", false},
		{"other", "oom_kill 1\n", false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, test.file), []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		g := &Group{unified: dir}
		if test.file == "memory.oom_control" {
			g = &Group{v1: []string{dir}}
		}
		if got := g.OOMKilled(); got != test.want {
			t.Errorf("%s %q: %t", test.file, test.text, got)
		}
	}
}

// Find sees what Create has made, and Remove leaves nothing, the groups of a
// Pod's containers included.
func TestCreateFindRemove(t *testing.T) {
	unified, pids := t.TempDir(), t.TempDir()
	m := &Manager{name: "fw-x", unified: unified, v1: map[string]string{"pids": pids}, control: map[string]bool{}}
	if _, err := m.Create("pod/c-0", Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(pids, "fw-x/pod/c-0"), 0o755); err != nil {
		t.Fatal(err)
	}
	pod := m.Find("pod")
	if pod.unified == "" || len(pod.v1) != 1 {
		t.Fatalf("found %+v", pod)
	}
	if err := os.WriteFile(filepath.Join(pod.unified, "cgroup.procs"), []byte("12\n0\n34\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := pod.Procs(); !slices.Equal(got, []int{12, 34}) { // 0 is one that this namespace cannot name
		t.Errorf("processes %v", got)
	}
	os.Remove(filepath.Join(pod.unified, "cgroup.procs")) //nolint:errcheck // it would not be a file that Rmdir minds
	if err := m.Find("").Remove(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{unified, pids} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
	if g := m.Find("pod"); g.unified != "" || len(g.v1) != 0 {
		t.Errorf("found %+v after all was removed", g)
	}
}
