package service

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/utils/ptr"
)

// form is a way to be a Service, as far as allocation goes.
type form struct {
	name string
	// become is what a user changes to make a Service of this form, in a manifest or in a patch.
	become func(*corev1.Service)
	// what a Service of this form has
	ip, np, hc bool
}

var forms = []form{
	{"ClusterIP", ofType(corev1.ServiceTypeClusterIP), true, false, false},
	{"NodePort", ofType(corev1.ServiceTypeNodePort), true, true, false},
	{"LoadBalancer", ofType(corev1.ServiceTypeLoadBalancer), true, true, false},
	{"LB-bare", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.AllocateLoadBalancerNodePorts = ptr.To(false)
	}, true, false, false},
	{"LB-local", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}, true, true, true},
	{"ExternalName", ofType(corev1.ServiceTypeExternalName), false, false, false},
	{"headless", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeClusterIP
		s.Spec.ClusterIP = corev1.ClusterIPNone
	}, false, false, false},
	{"manual", func(s *corev1.Service) { // headless, endpoints by hand
		s.Spec.Type = corev1.ServiceTypeClusterIP
		s.Spec.ClusterIP = corev1.ClusterIPNone
		s.Spec.Selector = nil
	}, false, false, false},
}

// transitions says what becomes of each form (row) that is made another (column) by patching no more than a user would.
//
//	.  the Service has what the new form has; what both have stayed the same
//	n  it still has node ports, which nothing took away
//	h  it still is headless: nothing gave it an address
//	x  refused: an address may not change once set
//	N  refused: these types may not be headless
const transitions = `
                ClusterIP  NodePort  LoadBalancer  LB-bare  LB-local  ExternalName  headless  manual
ClusterIP       .          .         .             .        .         .             x         x
NodePort        .          .         .             n        .         .             x         x
LoadBalancer    .          .         .             n        .         .             x         x
LB-bare         .          .         .             .        .         .             x         x
LB-local        .          .         .             n        .         .             x         x
ExternalName    .          .         .             .        .         .             .         .
headless        h          N         N             N        N         .             .         .
manual          h          N         N             N        N         .             .         .
`

var refusals = map[string]string{"x": "may not change once set", "N": "may not be set to 'None'"}

func TestTransitionsByPatch(t *testing.T) {
	c := newCluster(t)
	lines := strings.Split(strings.TrimSpace(transitions), "\n")
	columns := strings.Fields(lines[0])
	for i, line := range lines[1:] {
		cells := strings.Fields(line)
		from := forms[i]
		if cells[0] != from.name {
			t.Fatalf("row %d is %s, want %s", i, cells[0], from.name)
		}
		for j, cell := range cells[1:] {
			to := forms[j]
			if columns[j] != to.name {
				t.Fatalf("column %d is %s, want %s", j, columns[j], to.name)
			}
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				c.t = t
				before := c.mustCreate(svc("s", from.become))
				defer c.checkGone("s")
				after, err := c.edit("s", func(s *corev1.Service) {
					if s.Spec.ExternalTrafficPolicy != "" && to.name == "LB-bare" {
						s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
					}
					if from.name == "LB-bare" && to.np {
						s.Spec.AllocateLoadBalancerNodePorts = nil
					}
					if from.name == "LB-local" && to.name == "LoadBalancer" {
						s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
					}
					if to.name == "headless" && len(s.Spec.Selector) == 0 {
						s.Spec.Selector = map[string]string{"app": "s"}
					}
					to.become(s)
				})
				c.checkAudit()
				if want := refusals[cell]; want != "" {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Fatalf("error %v, want one with %q", err, want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				want := to
				want.np = want.np || cell == "n"
				if cell == "h" {
					want = forms[6]
				}
				checkForm(t, before, after, want)
			})
		}
	}
}

// TestTransitionsByManifest replaces a Service by a fresh manifest, as kubectl replace does: all that can be had is had,
// and what the manifest does not name is kept where the new form has it.
func TestTransitionsByManifest(t *testing.T) {
	c := newCluster(t)
	for _, from := range forms {
		for _, to := range forms {
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				c.t = t
				before := c.mustCreate(svc("s", from.become))
				defer c.checkGone("s")
				after, err := c.put(svc("s", to.become))
				c.checkAudit()
				wasHeadless, willBe := isHeadless(before), to.name == "headless" || to.name == "manual"
				switch {
				case from.ip && willBe:
					if err == nil || !strings.Contains(err.Error(), refusals["x"]) {
						t.Fatalf("error %v, want one with %q", err, refusals["x"])
					}
				case wasHeadless && to.ip && to.name != "ClusterIP":
					if err == nil || !strings.Contains(err.Error(), refusals["N"]) {
						t.Fatalf("error %v, want one with %q", err, refusals["N"])
					}
				case err != nil:
					t.Fatal(err)
				case wasHeadless && to.name == "ClusterIP":
					checkForm(t, before, after, forms[6])
				default:
					checkForm(t, before, after, to)
				}
			})
		}
	}
}

// checkForm checks that after has what a Service of form want has, and kept of before what it may.
func checkForm(t *testing.T, before, after *core.Service, want form) {
	t.Helper()
	had, has := holdingsOf(before), holdingsOf(after)
	if got := len(has.addrs) > 0; got != want.ip {
		t.Errorf("addresses %v, want some: %v", has.addrs, want.ip)
	}
	if want.ip && len(had.addrs) > 0 && has.addrs[0] != had.addrs[0] {
		t.Errorf("addresses changed from %v to %v", had.addrs, has.addrs)
	}
	var np, oldNP int32
	for _, p := range after.Spec.Ports {
		np = p.NodePort
	}
	for _, p := range before.Spec.Ports {
		oldNP = p.NodePort
	}
	if (np != 0) != want.np {
		t.Errorf("node port %d, want one: %v", np, want.np)
	}
	if want.np && oldNP != 0 && np != oldNP {
		t.Errorf("node port changed from %d to %d", oldNP, np)
	}
	if (after.Spec.HealthCheckNodePort != 0) != want.hc {
		t.Errorf("healthCheckNodePort %d, want one: %v", after.Spec.HealthCheckNodePort, want.hc)
	}
	if b := before.Spec.HealthCheckNodePort; want.hc && b != 0 && b != after.Spec.HealthCheckNodePort {
		t.Errorf("healthCheckNodePort changed from %d to %d", b, after.Spec.HealthCheckNodePort)
	}
	if n := len(has.addrs); want.ip && (len(after.Spec.IPFamilies) != n || after.Spec.IPFamilyPolicy == nil || after.Spec.ClusterIP != after.Spec.ClusterIPs[0]) {
		t.Errorf("addresses %v, clusterIP %s, families %v, policy %v do not agree", has.addrs, after.Spec.ClusterIP, after.Spec.IPFamilies, after.Spec.IPFamilyPolicy)
	}
}

// checkGone deletes a Service and checks that nothing of it is left.
func (c *cluster) checkGone(name string) {
	c.t.Helper()
	if err := c.delete(name); err != nil {
		c.t.Error(err)
	}
	c.checkAudit()
}

// TestFreedIsFree: what a Service gave up can be asked for by another at once.
func TestFreedIsFree(t *testing.T) {
	c := newCluster(t)
	ask := func(name string, from *core.Service) *corev1.Service {
		return svc(name, ofType(corev1.ServiceTypeNodePort), func(s *corev1.Service) {
			s.Spec.ClusterIP = from.Spec.ClusterIP
			s.Spec.Ports[0].NodePort = from.Spec.Ports[0].NodePort
		})
	}
	a := c.mustCreate(svc("a", ofType(corev1.ServiceTypeNodePort)))
	if _, err := c.create(ask("b", a)); err == nil || !strings.Contains(err.Error(), "provided IP is already allocated") {
		t.Fatalf("asking for an address in use: %v", err)
	}
	if _, err := c.edit("a", ofType(corev1.ServiceTypeExternalName)); err != nil {
		t.Fatal(err)
	}
	b := c.mustCreate(ask("b", a))
	if b.Spec.ClusterIP != a.Spec.ClusterIP || b.Spec.Ports[0].NodePort != a.Spec.Ports[0].NodePort {
		t.Errorf("got %s and %d, asked for %s and %d", b.Spec.ClusterIP, b.Spec.Ports[0].NodePort, a.Spec.ClusterIP, a.Spec.Ports[0].NodePort)
	}
	if err := c.delete("b"); err != nil {
		t.Fatal(err)
	}
	c.mustCreate(ask("c", a))
	c.checkAudit()
}

// TestPorts: changes to the list of ports.
func TestPorts(t *testing.T) {
	port := func(name string, proto corev1.Protocol, n, np int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: proto, Port: n, NodePort: np}
	}
	const tcp, udp = corev1.ProtocolTCP, corev1.ProtocolUDP
	type ports = []corev1.ServicePort
	for _, tt := range []struct {
		name          string
		before, after ports
		// want of the node ports after: = the same as the port at the index had before, number: this one, +: a new one,
		// ~i: the same as the port at index i has after
		want []string
		err  string
	}{
		{name: "unchanged", before: ports{port("a", tcp, 80, 0)}, after: ports{port("a", tcp, 80, 0)}, want: []string{"=0"}},
		{name: "number changed", before: ports{port("a", tcp, 80, 0)}, after: ports{port("a", tcp, 81, 0)}, want: []string{"=0"}},
		{name: "renamed", before: ports{port("a", tcp, 80, 0)}, after: ports{port("b", tcp, 80, 0)}, want: []string{"=0"}},
		{name: "swapped", before: ports{port("a", tcp, 80, 0), port("b", tcp, 81, 0)}, after: ports{port("b", tcp, 81, 0), port("a", tcp, 80, 0)}, want: []string{"=1", "=0"}},
		{name: "added", before: ports{port("a", tcp, 80, 0)}, after: ports{port("a", tcp, 80, 0), port("b", tcp, 81, 0)}, want: []string{"=0", "+"}},
		{name: "removed", before: ports{port("a", tcp, 80, 0), port("b", tcp, 81, 0)}, after: ports{port("b", tcp, 81, 0)}, want: []string{"=1"}},
		{name: "asked for", before: ports{port("a", tcp, 80, 0)}, after: ports{port("a", tcp, 80, 30042)}, want: []string{"30042"}},
		{name: "given to another", before: ports{port("a", tcp, 80, 30042)}, after: ports{port("a", tcp, 80, 0), port("b", tcp, 81, 30042)}, want: []string{"+", "30042"}},
		{name: "two protocols share", before: ports{port("a", tcp, 53, 0)}, after: ports{port("a", tcp, 53, 0), port("b", udp, 53, 0)}, want: []string{"=0", "~0"}},
		{name: "two protocols keep sharing", before: ports{port("a", tcp, 53, 0), port("b", udp, 53, 0)}, after: ports{port("a", tcp, 53, 0), port("b", udp, 53, 0)}, want: []string{"=0", "=0"}},
		{name: "two protocols stop sharing", before: ports{port("a", tcp, 53, 0), port("b", udp, 53, 0)}, after: ports{port("a", tcp, 53, 0), port("b", udp, 53, 30043)}, want: []string{"=0", "30043"}},
		{name: "same protocol twice", before: ports{port("a", tcp, 80, 0)}, after: ports{port("a", tcp, 80, 30042), port("b", tcp, 81, 30042)}, err: "spec.ports[1].nodePort: Duplicate value: 30042"},
		{name: "out of range", before: ports{port("a", tcp, 80, 0)}, after: ports{port("a", tcp, 80, 80)}, err: "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"},
		{name: "taken", before: ports{port("a", tcp, 80, 0)}, after: ports{port("a", tcp, 80, 30001)}, err: "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"},
		{name: "taken by another protocol", before: ports{port("a", tcp, 80, 0)}, after: ports{port("a", udp, 80, 30001)}, err: "provided port is already allocated"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			c.mustCreate(svc("other", ofType(corev1.ServiceTypeNodePort), func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30001 }))
			with := func(p ports) *corev1.Service {
				return svc("s", ofType(corev1.ServiceTypeNodePort), func(s *corev1.Service) { s.Spec.Ports = p })
			}
			before := c.mustCreate(with(tt.before))
			after, err := c.put(with(tt.after))
			c.checkAudit()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range tt.want {
				got := after.Spec.Ports[i].NodePort
				var j int
				ok := false
				switch {
				case want == "+":
					ok = got != 0 && !slices.ContainsFunc(before.Spec.Ports, func(p core.ServicePort) bool { return p.NodePort == got })
				case want[0] == '=':
					fmt.Sscanf(want, "=%d", &j)
					ok = got == before.Spec.Ports[j].NodePort
				case want[0] == '~':
					fmt.Sscanf(want, "~%d", &j)
					ok = got == after.Spec.Ports[j].NodePort
				default:
					ok = fmt.Sprint(got) == want
				}
				if !ok {
					t.Errorf("node port %d is %d, want %s (before: %v)", i, got, want, before.Spec.Ports)
				}
			}
		})
	}
}
