package podspec

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// DNS is what resolv.conf is made of.
type DNS struct {
	Servers  []netip.Addr // of the cluster
	Domain   string       // such as cluster.local
	HostFile string       // resolv.conf of the machine; /etc/resolv.conf if empty
}

// Resolver is a Pod's resolv.conf in parts.
type Resolver struct{ Servers, Searches, Options []string }

// String is the file.
func (r Resolver) String() string {
	var b strings.Builder
	if len(r.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.Searches, " "))
	}
	for _, s := range r.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.Options, " "))
	}
	return b.String()
}

// Limits of resolv.conf that Kubernetes keeps to.
const (
	maxNameservers = 3
	maxSearches    = 32
)

// ResolverOf follows the Pod's dnsPolicy and dnsConfig.
func ResolverOf(pod *v1.Pod, dns DNS) (Resolver, error) {
	host, err := readResolver(dns.HostFile)
	if err != nil {
		return host, err
	}
	policy := pod.Spec.DNSPolicy
	if policy == v1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = v1.DNSDefault
	}
	var r Resolver
	switch policy {
	case v1.DNSNone:
	case v1.DNSDefault:
		r = host
		r.Servers = reachable(host.Servers, dns.Servers)
	default: // ClusterFirst, ClusterFirstWithHostNet
		if len(dns.Servers) == 0 {
			r = host
			break
		}
		for _, s := range dns.Servers {
			r.Servers = append(r.Servers, s.String())
		}
		d := dns.Domain
		r.Searches = append([]string{pod.Namespace + ".svc." + d, "svc." + d, d}, host.Searches...)
		r.Options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		r.Servers = unique(append(r.Servers, c.Nameservers...))
		r.Searches = unique(append(r.Searches, c.Searches...))
		for _, o := range c.Options {
			r.Options = slices.DeleteFunc(r.Options, func(s string) bool { return s == o.Name || strings.HasPrefix(s, o.Name+":") })
			if o.Value != nil {
				r.Options = append(r.Options, o.Name+":"+*o.Value)
			} else {
				r.Options = append(r.Options, o.Name)
			}
		}
	}
	r.Servers = r.Servers[:min(len(r.Servers), maxNameservers)]
	r.Searches = r.Searches[:min(len(r.Searches), maxSearches)]
	return r, nil
}

// reachable puts the cluster's servers in the place of those on the machine's
// loopback (systemd-resolved's 127.0.0.53): a Pod has a loopback of its own. The
// cluster's servers ask the machine's in turn.
func reachable(servers []string, cluster []netip.Addr) []string {
	var out []string
	for _, s := range servers {
		if a, err := netip.ParseAddr(s); err != nil || !a.IsLoopback() || len(cluster) == 0 {
			out = append(out, s)
			continue
		}
		for _, c := range cluster {
			out = append(out, c.String())
		}
	}
	return unique(out)
}

func readResolver(path string) (Resolver, error) {
	if path == "" {
		path = "/etc/resolv.conf"
	}
	var r Resolver
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.Servers = append(r.Servers, f[1])
		case "search":
			r.Searches = nil
			for _, s := range f[1:] {
				if s != "." {
					r.Searches = append(r.Searches, s)
				}
			}
		case "options":
			r.Options = f[1:]
		}
	}
	return r, nil
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// HostnameOf is the name a Pod gives itself, and its domain if it has one.
func HostnameOf(pod *v1.Pod, clusterDomain string) (hostname, domain string) {
	if o := pod.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, ""
	}
	hostname = pod.Name
	if pod.Spec.Hostname != "" {
		hostname = pod.Spec.Hostname
	}
	if len(hostname) > 63 { // what Linux keeps
		hostname = strings.TrimRight(hostname[:63], "-.")
	}
	if pod.Spec.Subdomain != "" {
		domain = pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + clusterDomain
	}
	return hostname, domain
}

// HostsFile is a Pod's /etc/hosts.
func HostsFile(pod *v1.Pod, ips []netip.Addr, hostname, domain string) ([]byte, error) {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		data, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		b.WriteString("# The node's hosts file, with the Pod's additions by Fairway.\n")
		b.Write(data)
	} else {
		b.WriteString(`# Kubernetes-managed hosts file, written by Fairway.
127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::0	ip6-localnet
fe00::0	ip6-mcastprefix
fe00::1	ip6-allnodes
fe00::2	ip6-allrouters
`)
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, hostname, domain, hostname)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return []byte(b.String()), nil
}
