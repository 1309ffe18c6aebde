package cri

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairway.dev/fairway/internal/node/runtime"
)

// config is a sandbox in the CRI's words.
func (r *Runtime) config(s *runtime.Sandbox) *api.PodSandboxConfig {
	ns := namespaces(s)
	c := &api.PodSandboxConfig{
		Metadata: &api.PodSandboxMetadata{Name: s.Name, Uid: s.UID, Namespace: s.Namespace, Attempt: s.Attempt},
		Hostname: s.Hostname, LogDirectory: s.LogDir,
		DnsConfig: &api.DNSConfig{Servers: s.DNSServers, Searches: s.DNSSearches, Options: s.DNSOptions},
		Labels: map[string]string{labelPrefix: r.cfg.Prefix, labelNode: s.Node, labelUID: s.UID,
			labelNamespace: s.Namespace, labelPod: s.Name},
		Annotations: s.Annotations,
		Linux: &api.LinuxPodSandboxConfig{
			CgroupParent:    "/" + r.cfg.Prefix + "-cri/" + s.UID,
			SecurityContext: &api.LinuxSandboxSecurityContext{NamespaceOptions: ns, Privileged: s.Privileged, RunAsUser: int64Value(s.RunAsUser), RunAsGroup: int64Value(s.RunAsGroup)},
		},
	}
	if s.HostNetwork {
		c.Hostname = "" // the machine's
		if s.JoinNetNS != "" {
			c.Hostname = s.Node
		}
	}
	return c
}

func int64Value(p *int64) *api.Int64Value {
	if p == nil {
		return nil
	}
	return &api.Int64Value{Value: *p}
}

func namespaces(s *runtime.Sandbox) *api.NamespaceOption {
	ns := &api.NamespaceOption{Network: api.NamespaceMode_POD, Pid: api.NamespaceMode_CONTAINER, Ipc: api.NamespaceMode_POD}
	if s.HostNetwork && s.JoinNetNS == "" {
		ns.Network = api.NamespaceMode_NODE
	}
	if s.HostIPC {
		ns.Ipc = api.NamespaceMode_NODE
	}
	switch {
	case s.HostPID:
		ns.Pid = api.NamespaceMode_NODE
	case s.SharePID:
		ns.Pid = api.NamespaceMode_POD
	}
	return ns
}

// namespacesOf is what a container shares: what its sandbox says, and the
// processes of the container that it is to see. One of another runtime's is
// among the machine's.
func (r *Runtime) namespacesOf(s *runtime.Sandbox, c *runtime.Container) *api.NamespaceOption {
	ns := namespaces(s)
	if c.SeeProcesses == "" || ns.Pid != api.NamespaceMode_CONTAINER {
		return ns
	}
	if id, mine := strings.CutPrefix(c.SeeProcesses, r.name+"://"); mine {
		ns.Pid, ns.TargetId = api.NamespaceMode_TARGET, id
	} else {
		ns.Pid = api.NamespaceMode_NODE
	}
	return ns
}

// seccompDir is where a kubelet looks for the profiles of type Localhost.
const seccompDir = "/var/lib/kubelet/seccomp"

func seccomp(p *v1.SeccompProfile) *api.SecurityProfile {
	switch {
	case p != nil && p.Type == v1.SeccompProfileTypeRuntimeDefault:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_RuntimeDefault}
	case p != nil && p.Type == v1.SeccompProfileTypeLocalhost && p.LocalhostProfile != nil:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_Localhost, LocalhostRef: filepath.Join(seccompDir, *p.LocalhostProfile)}
	}
	return &api.SecurityProfile{ProfileType: api.SecurityProfile_Unconfined}
}

// containerConfig is a container in the CRI's words.
func (r *Runtime) containerConfig(s *runtime.Sandbox, c *runtime.Container) (*api.ContainerConfig, error) {
	log, err := filepath.Rel(s.LogDir, c.LogPath)
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", c.LogPath, err)
	}
	cfg := &api.ContainerConfig{
		Metadata: &api.ContainerMetadata{Name: c.Name, Attempt: c.Attempt},
		Image:    &api.ImageSpec{Image: c.ImageRef, UserSpecifiedImage: c.Image},
		Command:  c.Command, Args: c.Args, WorkingDir: c.WorkingDir, LogPath: log,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Labels: map[string]string{labelPrefix: r.cfg.Prefix, labelNode: s.Node, labelUID: s.UID, labelNamespace: s.Namespace,
			labelPod: s.Name, labelContainer: c.Name},
		Linux: &api.LinuxContainerConfig{
			Resources: &api.LinuxContainerResources{CpuShares: int64(c.Limits.CPUShares), MemoryLimitInBytes: c.Limits.MemoryBytes, OomScoreAdj: int64(c.OOMScoreAdj)},
			SecurityContext: &api.LinuxContainerSecurityContext{
				NamespaceOptions: r.namespacesOf(s, c), Privileged: c.Privileged, RunAsUser: int64Value(c.User), RunAsGroup: int64Value(c.Group),
				SupplementalGroups: c.SupplementalGroups, ReadonlyRootfs: c.ReadOnlyRoot, NoNewPrivs: c.NoNewPrivs,
				Capabilities: &api.Capability{AddCapabilities: c.AddCaps, DropCapabilities: c.DropCaps},
				Seccomp:      seccomp(c.Seccomp),
			},
		},
	}
	if !c.Privileged {
		sc := cfg.Linux.SecurityContext
		sc.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"}
		sc.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	if c.Limits.CPUMilli > 0 {
		cfg.Linux.Resources.CpuPeriod, cfg.Linux.Resources.CpuQuota = 100_000, max(c.Limits.CPUMilli*100, 1000)
	}
	for _, e := range c.Env {
		k, v, _ := strings.Cut(e, "=")
		cfg.Envs = append(cfg.Envs, &api.KeyValue{Key: k, Value: []byte(v)})
	}
	for _, m := range c.Mounts {
		p := api.MountPropagation_PROPAGATION_PRIVATE
		switch m.Propagation {
		case unix.MS_SLAVE:
			p = api.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case unix.MS_SHARED:
			p = api.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
		cfg.Mounts = append(cfg.Mounts, &api.Mount{HostPath: m.Source, ContainerPath: m.Target, Readonly: m.ReadOnly, Propagation: p})
	}
	return cfg, nil
}
