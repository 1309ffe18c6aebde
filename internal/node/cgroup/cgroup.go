// Package cgroup puts containers into control groups: to bound what they use,
// and to find and end every process that belongs to one.
//
// In goes a group's path and limits, out comes a Group. It works with the
// unified hierarchy (v2), with version 1 beside a unified hierarchy that has no
// controllers (hybrid), and with none at all: then every call succeeds and does
// nothing, and Group.CanKill says so. It touches only groups below the name it
// was given.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bounds a group; zero values bound nothing.
type Limits struct {
	CPUShares   uint64 // relative weight as in version 1: 1024 for one CPU asked for
	CPUMilli    int64  // thousandths of a CPU
	MemoryBytes int64
	Pids        int64
}

// Manager makes groups below one name.
type Manager struct {
	name    string
	unified string            // mount point of the v2 hierarchy, "" for none
	control map[string]bool   // controllers that the v2 hierarchy offers at the top
	v1      map[string]string // controller → mount point
}

// New finds the machine's hierarchies. name is the group below which all
// others are made.
func New(name string) *Manager {
	m := &Manager{name: name, control: map[string]bool{}, v1: map[string]string{}}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return m
	}
	defer f.Close()
	m.find(f, writable)
	if m.unified != "" {
		b, _ := os.ReadFile(filepath.Join(m.unified, "cgroup.subtree_control"))
		for _, c := range strings.Fields(string(b)) {
			m.control[c] = true
		}
	}
	return m
}

// find reads the hierarchies from a mountinfo file.
func (m *Manager) find(mountinfo io.Reader, writable func(dir string) bool) {
	for s := bufio.NewScanner(mountinfo); s.Scan(); {
		// 36 35 98:0 /root /mnt opts… - type source superopts (proc_pid_mountinfo(5))
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		switch mount := l[4]; r[0] {
		case "cgroup2":
			if writable(mount) {
				m.unified = mount
			}
		case "cgroup":
			for _, c := range strings.Split(r[2], ",") {
				if (c == "cpu" || c == "memory" || c == "pids") && writable(mount) {
					m.v1[c] = mount
				}
			}
		}
	}
}

func writable(dir string) bool {
	var st unix.Statfs_t
	return unix.Access(dir, unix.W_OK) == nil && unix.Statfs(dir, &st) == nil && st.Flags&unix.ST_RDONLY == 0
}

// Lacks names the controllers without which a limit cannot be held; empty if
// this machine can hold all of l.
func (m *Manager) Lacks(l Limits) []string {
	var out []string
	for c, wanted := range map[string]bool{"cpu": l.CPUMilli > 0, "memory": l.MemoryBytes > 0, "pids": l.Pids > 0} {
		if wanted && !m.control[c] && m.v1[c] == "" {
			out = append(out, c)
		}
	}
	return out
}

// Group is one control group, in each hierarchy that it needs.
type Group struct {
	unified string   // directory, "" for none
	v1      []string // directories
}

// Create makes the group at path (below the manager's name) with limits. What
// the machine cannot do is left out; see Lacks.
func (m *Manager) Create(path string, l Limits) (*Group, error) {
	g := &Group{}
	if m.unified != "" {
		g.unified = filepath.Join(m.unified, m.name, path)
		if err := os.MkdirAll(g.unified, 0o755); err != nil {
			return nil, fmt.Errorf("make control group: %w", err)
		}
		if l != (Limits{}) {
			if err := m.limit2(g.unified, l); err != nil {
				return g, err
			}
		}
	}
	var errs []error
	for _, s := range l.version1() {
		mount := m.v1[s.controller]
		if mount == "" {
			continue
		}
		dir := filepath.Join(mount, m.name, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return g, fmt.Errorf("make control group: %w", err)
		}
		if !slices.Contains(g.v1, dir) {
			g.v1 = append(g.v1, dir)
		}
		errs = append(errs, write(dir, s.file, s.value))
	}
	return g, errors.Join(errs...)
}

// setting is a controller's file and what is to be written to it.
type setting struct{ controller, file, value string }

// version1 is what the limits come to in version 1 of control groups.
func (l Limits) version1() (out []setting) {
	for _, s := range []struct {
		controller, file string
		value            int64
	}{
		{"cpu", "cpu.shares", int64(l.CPUShares)}, {"cpu", "cpu.cfs_quota_us", quota(l.CPUMilli)},
		{"memory", "memory.limit_in_bytes", l.MemoryBytes}, {"pids", "pids.max", l.Pids},
	} {
		if s.value > 0 {
			out = append(out, setting{s.controller, s.file, strconv.FormatInt(s.value, 10)})
		}
	}
	return out
}

// version2 is what the limits come to in version 2.
func (l Limits) version2() (out []setting) {
	if l.CPUShares > 0 {
		// The conversion that container runtimes use: 2…262144 onto 1…10000.
		w := 1 + ((max(l.CPUShares, 2)-2)*9999)/262142
		out = append(out, setting{"cpu", "cpu.weight", strconv.FormatUint(min(w, 10000), 10)})
	}
	if l.CPUMilli > 0 {
		out = append(out, setting{"cpu", "cpu.max", fmt.Sprintf("%d %d", quota(l.CPUMilli), period)})
	}
	if l.MemoryBytes > 0 {
		out = append(out, setting{"memory", "memory.max", strconv.FormatInt(l.MemoryBytes, 10)})
	}
	if l.Pids > 0 {
		out = append(out, setting{"pids", "pids.max", strconv.FormatInt(l.Pids, 10)})
	}
	return out
}

const period = 100_000 // µs, the kernel's default

func quota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*period/1000, 1000) // the kernel's least
}

// limit2 hands controllers down to dir and sets its limits.
func (m *Manager) limit2(dir string, l Limits) error {
	rel, _ := filepath.Rel(m.unified, dir)
	at := m.unified
	for _, part := range strings.Split(filepath.Dir(rel), "/") {
		at = filepath.Join(at, part)
		for c := range m.control {
			if c == "cpu" || c == "memory" || c == "pids" {
				if err := write(at, "cgroup.subtree_control", "+"+c); err != nil {
					return err
				}
			}
		}
	}
	var errs []error
	for _, s := range l.version2() {
		if m.control[s.controller] {
			errs = append(errs, write(dir, s.file, s.value))
		}
	}
	return errors.Join(errs...)
}

// Find returns the group at path as an earlier process has left it.
func (m *Manager) Find(path string) *Group {
	g := &Group{}
	if m.unified != "" {
		if dir := filepath.Join(m.unified, m.name, path); exists(dir) {
			g.unified = dir
		}
	}
	for _, mount := range m.v1 {
		if dir := filepath.Join(mount, m.name, path); exists(dir) {
			g.v1 = append(g.v1, dir)
		}
	}
	return g
}

// Open opens the group for SysProcAttr.CgroupFD, nil if there is no unified
// hierarchy. The caller closes it.
func (g *Group) Open() (*os.File, error) {
	if g == nil || g.unified == "" {
		return nil, nil
	}
	return os.Open(g.unified)
}

// EnterThread moves the calling thread alone into the version 1 groups, so that
// what it starts is born in them. The thread must end afterwards.
func (g *Group) EnterThread() error {
	if g == nil {
		return nil
	}
	for _, dir := range g.v1 {
		if err := write(dir, "tasks", strconv.Itoa(unix.Gettid())); err != nil {
			return err
		}
	}
	return nil
}

// CanKill tells whether Kill reaches every process of the group.
func (g *Group) CanKill() bool { return g != nil && g.unified != "" }

// Kill ends every process in the group and below it at once.
func (g *Group) Kill() error {
	if !g.CanKill() {
		return nil
	}
	err := write(g.unified, "cgroup.kill", "1")
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !exists(g.unified) {
		return nil
	}
	// Before Linux 5.14: until a pass finds nobody.
	for range 100 {
		pids := g.Procs()
		if len(pids) == 0 {
			return nil
		}
		for _, p := range pids {
			unix.Kill(p, unix.SIGKILL) //nolint:errcheck // it may have gone
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("control group %s: still has processes after SIGKILL", g.unified)
}

// Procs lists the processes of the group itself.
func (g *Group) Procs() []int {
	if !g.CanKill() {
		return nil
	}
	b, _ := os.ReadFile(filepath.Join(g.unified, "cgroup.procs"))
	var out []int
	for _, s := range strings.Fields(string(b)) {
		if p, err := strconv.Atoi(s); err == nil && p > 0 {
			out = append(out, p)
		}
	}
	return out
}

// OOMKilled tells whether the kernel has ended a process of the group for want
// of memory within its limit.
func (g *Group) OOMKilled() bool {
	if g == nil {
		return false
	}
	files := []string{filepath.Join(g.unified, "memory.events")}
	for _, dir := range g.v1 {
		files = append(files, filepath.Join(dir, "memory.oom_control"))
	}
	for _, file := range files {
		b, _ := os.ReadFile(file)
		for _, line := range strings.Split(string(b), "\n") {
			if n, ok := strings.CutPrefix(line, "oom_kill "); ok && n != "0" {
				return true
			}
		}
	}
	return false
}

// Remove takes the group away, with those below it. Its processes must have
// ended; the kernel may need a moment to let go of them.
func (g *Group) Remove() error {
	if g == nil {
		return nil
	}
	var errs []error
	for _, dir := range append([]string{g.unified}, g.v1...) {
		if dir != "" {
			errs = append(errs, removeTree(dir))
		}
	}
	return errors.Join(errs...)
}

// Cleanup ends and removes every group below the manager's name.
func (m *Manager) Cleanup() error {
	var errs []error
	top := m.Find("")
	if top.CanKill() {
		if err := write(top.unified, "cgroup.kill", "1"); err != nil {
			filepath.WalkDir(top.unified, func(dir string, d fs.DirEntry, err error) error { //nolint:errcheck
				if err == nil && d.IsDir() {
					errs = append(errs, (&Group{unified: dir}).Kill())
				}
				return nil
			})
		}
	}
	return errors.Join(append(errs, top.Remove())...)
}

func removeTree(dir string) error {
	ents, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range ents {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for try := 0; ; try++ {
		err = unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || try == 200 {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("control group: write %s to %s/%s: %w", value, dir, file, err)
	}
	return nil
}
