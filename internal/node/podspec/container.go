package podspec

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"fairway.dev/fairway/internal/node/cgroup"
	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/node/volumes"
)

// Files are the Pod's own files on the machine, mounted into each container.
type Files struct {
	Hosts, ResolvConf string
	// TerminationLog is the container's; mounted at terminationMessagePath.
	TerminationLog string
}

// Build makes a container ready to be started, but for its attempt and log.
func Build(ctx context.Context, pod *v1.Pod, c *v1.Container, f Facts, vols map[string]volumes.Volume, files Files) (*runtime.Container, error) {
	env, lookup, err := Environment(ctx, pod, c, f)
	if err != nil {
		return nil, err
	}
	out := &runtime.Container{
		Name: c.Name, Image: c.Image,
		Command: Expand(c.Command, lookup), Args: Expand(c.Args, lookup), Env: env, WorkingDir: c.WorkingDir,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.TTY,
		Limits: LimitsOf(c),
	}
	for _, m := range c.VolumeMounts {
		mount, err := mountOf(m, vols, lookup)
		if err != nil {
			return nil, err
		}
		out.Mounts = append(out.Mounts, mount)
	}
	taken := map[string]bool{}
	for _, m := range out.Mounts {
		taken[filepath.Clean(m.Target)] = true
	}
	term := c.TerminationMessagePath
	if term == "" {
		term = v1.TerminationMessagePathDefault
	}
	for target, source := range map[string]string{"/etc/hosts": files.Hosts, "/etc/resolv.conf": files.ResolvConf, term: files.TerminationLog} {
		if source != "" && !taken[target] {
			out.Mounts = append(out.Mounts, runtime.Mount{Source: source, Target: target})
		}
	}
	security(pod, c, out)
	return out, nil
}

func mountOf(m v1.VolumeMount, vols map[string]volumes.Volume, lookup map[string]string) (runtime.Mount, error) {
	v, ok := vols[m.Name]
	if !ok {
		return runtime.Mount{}, fmt.Errorf("cannot find volume %q to mount at %s", m.Name, m.MountPath)
	}
	out := runtime.Mount{Source: v.Path, Target: m.MountPath, ReadOnly: m.ReadOnly || v.ReadOnly}
	sub := m.SubPath
	if m.SubPathExpr != "" {
		sub = expansion.Expand(m.SubPathExpr, expansion.MappingFuncFor(lookup))
	}
	if sub != "" {
		// Links in the volume must not lead out of it.
		path, err := securejoin.SecureJoin(v.Path, sub)
		if err != nil {
			return out, fmt.Errorf("subPath %q of volume %q: %w", sub, m.Name, err)
		}
		if _, err := os.Stat(path); os.IsNotExist(err) {
			if err := os.MkdirAll(path, 0o777); err != nil {
				return out, fmt.Errorf("subPath %q of volume %q: %w", sub, m.Name, err)
			}
		}
		out.Source = path
	}
	if !filepath.IsAbs(out.Target) {
		out.Target = "/" + out.Target
	}
	if m.MountPropagation != nil {
		switch *m.MountPropagation {
		case v1.MountPropagationHostToContainer:
			out.Propagation = unix.MS_SLAVE
		case v1.MountPropagationBidirectional:
			out.Propagation = unix.MS_SHARED
		}
	}
	return out, nil
}

// LimitsOf is what a container's resources come to in a control group.
func LimitsOf(c *v1.Container) cgroup.Limits {
	var l cgroup.Limits
	req, lim := c.Resources.Requests, c.Resources.Limits
	if q, ok := req[v1.ResourceCPU]; ok {
		l.CPUShares = uint64(max(q.MilliValue()*1024/1000, 2))
	}
	if q, ok := lim[v1.ResourceCPU]; ok {
		l.CPUMilli = q.MilliValue()
		if l.CPUShares == 0 {
			l.CPUShares = uint64(max(l.CPUMilli*1024/1000, 2))
		}
	}
	if q, ok := lim[v1.ResourceMemory]; ok {
		l.MemoryBytes = q.Value()
	}
	return l
}

// security merges the Pod's security context with the container's, which wins.
func security(pod *v1.Pod, c *v1.Container, out *runtime.Container) {
	if p := pod.Spec.SecurityContext; p != nil {
		out.User, out.Group = p.RunAsUser, p.RunAsGroup
		out.SupplementalGroups = append(out.SupplementalGroups, p.SupplementalGroups...)
		if p.FSGroup != nil {
			out.SupplementalGroups = append(out.SupplementalGroups, *p.FSGroup)
		}
		out.NonRoot = p.RunAsNonRoot != nil && *p.RunAsNonRoot
		out.Seccomp = p.SeccompProfile
	}
	s := c.SecurityContext
	if s == nil {
		return
	}
	if s.RunAsUser != nil {
		out.User = s.RunAsUser
	}
	if s.RunAsGroup != nil {
		out.Group = s.RunAsGroup
	}
	if s.RunAsNonRoot != nil {
		out.NonRoot = *s.RunAsNonRoot
	}
	if s.SeccompProfile != nil {
		out.Seccomp = s.SeccompProfile
	}
	out.Privileged = s.Privileged != nil && *s.Privileged
	out.ReadOnlyRoot = s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem
	out.NoNewPrivs = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
	if s.Capabilities != nil {
		for _, a := range s.Capabilities.Add {
			out.AddCaps = append(out.AddCaps, string(a))
		}
		for _, d := range s.Capabilities.Drop {
			out.DropCaps = append(out.DropCaps, string(d))
		}
	}
}
