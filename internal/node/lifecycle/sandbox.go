package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/node/network"
	"fairway.dev/fairway/internal/node/podspec"
	"fairway.dev/fairway/internal/node/runtime"
)

// sandboxRecord is what the next process needs to take a Pod over.
type sandboxRecord struct {
	Net       *network.Pod                `json:"net,omitempty"` // nil for hostNetwork
	Sandboxes map[string]*runtime.Sandbox `json:"sandboxes"`     // by the runtime's scheme
	Attempt   uint32                      `json:"attempt"`
}

func readSandbox(dir string) (*sandboxRecord, error) {
	data, err := os.ReadFile(filepath.Join(dir, "sandbox.json"))
	if err != nil {
		return nil, err
	}
	var rec sandboxRecord
	return &rec, json.Unmarshal(data, &rec)
}

func (r *sandboxRecord) save(dir string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "sandbox.tmp")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "sandbox.json"))
}

// ips are the Pod's addresses.
func (w *worker) ips() []netip.Addr {
	switch {
	case w.pod.Spec.HostNetwork:
		return w.m.cfg.HostIPs
	case w.sb != nil && w.sb.Net != nil:
		return w.sb.Net.Addrs
	}
	return nil
}

// ensureSandbox makes the Pod's network and sandbox, if it has none.
func (w *worker) ensureSandbox(ctx context.Context) (err error) {
	if w.sb != nil {
		return nil
	}
	cfg, pod := &w.m.cfg, w.pod
	w.attempt++
	hostname, domain := podspec.HostnameOf(pod, cfg.DNS.Domain)
	sb, resolver, err := w.sandbox()
	if err != nil {
		return err
	}
	rec := &sandboxRecord{Sandboxes: map[string]*runtime.Sandbox{}, Attempt: w.attempt}
	defer func() {
		if err != nil {
			w.removeSandbox(context.WithoutCancel(ctx), rec) //nolint:errcheck // the first error says more
		}
	}()
	// The runtimes that the Pod's containers need; one that makes the network
	// namespace itself goes first.
	runtimes := map[string]runtime.Runtime{}
	each(pod, func(c *v1.Container, _ bool) {
		if rt, rerr := cfg.RuntimeFor(c.Image); rerr == nil {
			runtimes[rt.Scheme()] = rt
		}
	})
	if pod.Spec.HostNetwork {
		sb.JoinNetNS = cfg.Net.NSName() // "" where the machine is the node
	}
	netnsPath := ""
	for scheme, rt := range runtimes {
		s := sb
		if err := rt.CreateSandbox(ctx, &s); err != nil {
			return err
		}
		rec.Sandboxes[scheme] = &s
		if s.NetNSPath != "" {
			netnsPath = s.NetNSPath
		}
	}
	name := ""
	if pod.Spec.HostNetwork {
		name = cfg.Net.NSName()
	} else {
		if rec.Net, err = cfg.Net.AddPod(netnsPath); err != nil {
			return err
		}
		name = rec.Net.NSName
		if err := setSysctls(rec.Net, sb.Sysctls); err != nil {
			return err
		}
		if ports := hostPortsOf(pod); len(ports) > 0 {
			if err := w.m.setHostPorts(rec.Net, ports); err != nil {
				return err
			}
		}
	}
	for _, s := range rec.Sandboxes {
		s.NetNS = name
	}
	if err := rec.save(w.dir); err != nil {
		return err
	}
	w.mu.Lock()
	w.sb = rec
	w.mu.Unlock()
	hosts, err := podspec.HostsFile(pod, w.ips(), hostname, domain)
	if err != nil {
		return err
	}
	if err := writeFile(w.path("etc-hosts"), hosts); err != nil {
		return err
	}
	return writeFile(w.path("resolv.conf"), []byte(resolver.String()))
}

// sandbox is what the Pod asks of any runtime's sandbox, and its resolv.conf.
func (w *worker) sandbox() (sb runtime.Sandbox, _ podspec.Resolver, _ error) {
	cfg, pod := &w.m.cfg, w.pod
	hostname, domain := podspec.HostnameOf(pod, cfg.DNS.Domain)
	resolver, err := podspec.ResolverOf(pod, cfg.DNS)
	if err != nil {
		return sb, resolver, fmt.Errorf("resolv.conf: %w", err)
	}
	sb = runtime.Sandbox{Node: cfg.Node, UID: string(w.uid), Namespace: w.namespace, Name: w.name, Attempt: w.attempt,
		Hostname: hostname, LogDir: w.logDir(), HostNetwork: pod.Spec.HostNetwork, HostPID: pod.Spec.HostPID, HostIPC: pod.Spec.HostIPC,
		SharePID:   pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace,
		DNSServers: resolver.Servers, DNSSearches: resolver.Searches, DNSOptions: resolver.Options,
		Labels: pod.Labels, Annotations: pod.Annotations, Sysctls: map[string]string{}}
	if domain != "" && pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN {
		sb.Hostname = hostname + "." + domain
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		sb.RunAsUser, sb.RunAsGroup = sc.RunAsUser, sc.RunAsGroup
		for _, s := range sc.Sysctls {
			sb.Sysctls[s.Name] = s.Value
		}
	}
	privileged := func(c *v1.Container) bool {
		return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
	}
	each(pod, func(c *v1.Container, _ bool) { sb.Privileged = sb.Privileged || privileged(c) })
	for i := range pod.Spec.EphemeralContainers {
		sb.Privileged = sb.Privileged || privileged((*v1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	return sb, resolver, nil
}

// addSandbox makes the sandbox of one more runtime in the Pod's network as it
// is.
func (w *worker) addSandbox(ctx context.Context, rt runtime.Runtime) (*runtime.Sandbox, error) {
	sb, _, err := w.sandbox()
	if err != nil {
		return nil, err
	}
	sb.Attempt = w.sb.Attempt
	if w.sb.Net != nil {
		sb.JoinNetNS = w.sb.Net.NSName
	} else {
		sb.JoinNetNS = w.m.cfg.Net.NSName()
	}
	if err := rt.CreateSandbox(ctx, &sb); err != nil {
		return nil, err
	}
	sb.NetNS = sb.JoinNetNS
	w.sb.Sandboxes[rt.Scheme()] = &sb
	if err := w.sb.save(w.dir); err != nil {
		delete(w.sb.Sandboxes, rt.Scheme())
		return nil, errors.Join(err, rt.RemoveSandbox(context.WithoutCancel(ctx), &sb))
	}
	return &sb, nil
}

// writeFile writes a file that containers may have mounted: in place.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

// setSysctls sets those of the network, which are the Pod's own.
func setSysctls(p *network.Pod, sysctls map[string]string) error {
	if len(sysctls) == 0 {
		return nil
	}
	ns, err := p.OpenPod()
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		for name, value := range sysctls {
			if !strings.HasPrefix(name, "net.") && !strings.HasPrefix(name, "net/") {
				return fmt.Errorf("sysctl %s: belongs to the machine, not to a Pod; only those that begin with net. can be set", name)
			}
			key := strings.ReplaceAll(name, ".", "/")
			if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
				return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
			}
		}
		return nil
	})
}

func hostPortsOf(pod *v1.Pod) []network.HostPort {
	var out []network.HostPort
	each(pod, func(c *v1.Container, init bool) {
		if init && !isSidecar(c) {
			return
		}
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			hp := network.HostPort{HostPort: uint16(p.HostPort), PodPort: uint16(p.ContainerPort), Protocol: unix.IPPROTO_TCP}
			switch p.Protocol {
			case v1.ProtocolUDP:
				hp.Protocol = unix.IPPROTO_UDP
			case v1.ProtocolSCTP:
				hp.Protocol = unix.IPPROTO_SCTP
			}
			if p.HostIP != "" {
				hp.HostIP, _ = netip.ParseAddr(p.HostIP)
			}
			out = append(out, hp)
		}
	})
	return out
}

// adoptSandbox takes the Pod's network over from an earlier process.
func (w *worker) adoptSandbox() error {
	rec, err := readSandbox(w.dir)
	if err != nil {
		return err
	}
	w.attempt = rec.Attempt
	if rec.Net != nil {
		p, err := w.m.cfg.Net.AdoptPod(*rec.Net)
		if err != nil {
			return errors.Join(err, w.removeSandbox(context.Background(), rec))
		}
		rec.Net = p
		if err := w.m.setHostPorts(p, hostPortsOf(w.pod)); err != nil {
			return err
		}
	}
	w.sb = rec
	return nil
}

// removeSandbox ends all that runs in a sandbox and takes the network away.
func (w *worker) removeSandbox(ctx context.Context, rec *sandboxRecord) error {
	if rec == nil {
		return nil
	}
	var errs []error
	for _, rt := range w.m.cfg.Runtimes() {
		if sb := rec.Sandboxes[rt.Scheme()]; sb != nil {
			errs = append(errs, rt.RemoveSandbox(ctx, sb))
		}
	}
	if rec.Net != nil {
		errs = append(errs, w.m.setHostPorts(rec.Net, nil), w.m.cfg.Net.RemovePod(rec.Net))
	}
	os.Remove(w.path("sandbox.json")) //nolint:errcheck // it may never have been written
	w.mu.Lock()
	if w.sb == rec {
		w.sb = nil
	}
	w.mu.Unlock()
	return errors.Join(errs...)
}
