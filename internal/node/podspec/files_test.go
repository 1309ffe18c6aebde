package podspec

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestResolver(t *testing.T) {
	host := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(host, []byte("# comment\nsearch . old\nsearch lan example.com\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions rotate\nnonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster := []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	const first = "search ns.svc.cluster.local svc.cluster.local cluster.local lan example.com\nnameserver 10.96.0.10\noptions ndots:5\n"
	const hosts = "search lan example.com\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions rotate\n"
	for _, test := range []struct {
		name    string
		policy  v1.DNSPolicy
		hostNet bool
		config  *v1.PodDNSConfig
		servers []netip.Addr
		want    string
	}{
		{"usual", v1.DNSClusterFirst, false, nil, cluster, first},
		{"hostNetwork", v1.DNSClusterFirst, true, nil, cluster, hosts},
		{"hostNetwork that wants the cluster", v1.DNSClusterFirstWithHostNet, true, nil, cluster, first},
		{"the machine's", v1.DNSDefault, false, nil, cluster, hosts},
		{"no cluster DNS", v1.DNSClusterFirst, false, nil, nil, hosts},
		{"its own", v1.DNSNone, false, &v1.PodDNSConfig{Nameservers: []string{"192.0.2.9"}, Searches: []string{"own"}, Options: []v1.PodDNSConfigOption{{Name: "debug"}}}, cluster,
			"search own\nnameserver 192.0.2.9\noptions debug\n"},
		{"merged", v1.DNSClusterFirst, false, &v1.PodDNSConfig{Nameservers: []string{"192.0.2.9", "10.96.0.10"}, Searches: []string{"lan", "own"},
			Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: ptr.To("2")}, {Name: "edns0"}}}, cluster,
			"search ns.svc.cluster.local svc.cluster.local cluster.local lan example.com own\nnameserver 10.96.0.10\nnameserver 192.0.2.9\noptions ndots:2 edns0\n"},
		{"no more than three servers", v1.DNSNone, false, &v1.PodDNSConfig{Nameservers: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}}, nil,
			"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := pod()
			p.Spec.DNSPolicy, p.Spec.HostNetwork, p.Spec.DNSConfig = test.policy, test.hostNet, test.config
			r, err := ResolverOf(p, DNS{Servers: test.servers, Domain: "cluster.local", HostFile: host})
			if err != nil {
				t.Fatal(err)
			}
			if got := r.String(); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
	// A resolver on the machine's loopback, as systemd-resolved's.
	stub := filepath.Join(t.TempDir(), "stub")
	if err := os.WriteFile(stub, []byte("nameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\noptions edns0 trust-ad\nsearch lan\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := pod()
	p.Spec.DNSPolicy = v1.DNSDefault
	for _, test := range []struct {
		servers []netip.Addr
		want    string
	}{
		{cluster, "search lan\nnameserver 10.96.0.10\nnameserver 192.0.2.1\noptions edns0 trust-ad\n"},
		{nil, "search lan\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\noptions edns0 trust-ad\n"}, // there is nobody better
	} {
		if r, err := ResolverOf(p, DNS{Servers: test.servers, Domain: "cluster.local", HostFile: stub}); err != nil || r.String() != test.want {
			t.Errorf("servers %v:\n%s%v\nwant\n%s", test.servers, r.String(), err, test.want)
		}
	}
	if r, err := ResolverOf(pod(), DNS{HostFile: "/none"}); err != nil || r.String() != "" {
		t.Errorf("a machine without the file: %q, %v", r.String(), err)
	}
}

func TestHostname(t *testing.T) {
	for _, test := range []struct {
		spec             v1.PodSpec
		name             string
		hostname, domain string
	}{
		{v1.PodSpec{}, "p", "p", ""},
		{v1.PodSpec{Hostname: "h"}, "p", "h", ""},
		{v1.PodSpec{Subdomain: "sub"}, "p", "p", "sub.ns.svc.cluster.local"},
		{v1.PodSpec{Hostname: "h", Subdomain: "sub", HostnameOverride: ptr.To("other.example.com")}, "p", "other.example.com", ""},
		{v1.PodSpec{}, strings.Repeat("x", 62) + "-tail", strings.Repeat("x", 62), ""},
	} {
		p := pod()
		p.Name, p.Spec = test.name, test.spec
		if h, d := HostnameOf(p, "cluster.local"); h != test.hostname || d != test.domain {
			t.Errorf("%s %+v: %q, %q", test.name, test.spec, h, d)
		}
	}
}

func TestHostsFile(t *testing.T) {
	p := pod()
	p.Spec.HostAliases = []v1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"a", "b"}}}
	ips := facts().PodIPs
	for domain, want := range map[string]string{"": "10.244.1.2\tp\nfd01::2\tp\n", "sub.x": "10.244.1.2\tp.sub.x\tp\nfd01::2\tp.sub.x\tp\n"} {
		b, err := HostsFile(p, ips, "p", domain)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"127.0.0.1\tlocalhost\n", want, "192.0.2.7\ta\tb\n"} {
			if !strings.Contains(string(b), line) {
				t.Errorf("lacks %q:\n%s", line, b)
			}
		}
	}
	p.Spec.HostNetwork = true
	b, err := HostsFile(p, ips, "p", "")
	if err != nil || strings.Contains(string(b), "10.244.1.2") || !strings.Contains(string(b), "192.0.2.7\ta\tb\n") {
		t.Errorf("of a hostNetwork Pod: %v\n%s", err, b)
	}
}
