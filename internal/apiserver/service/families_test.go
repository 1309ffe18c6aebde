package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/utils/ptr"
)

const (
	v4, v6   = corev1.IPv4Protocol, corev1.IPv6Protocol
	single   = corev1.IPFamilyPolicySingleStack
	prefer   = corev1.IPFamilyPolicyPreferDualStack
	required = corev1.IPFamilyPolicyRequireDualStack
)

func withPolicy(p corev1.IPFamilyPolicy, families ...corev1.IPFamily) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.IPFamilyPolicy = nil
		if p != "" {
			s.Spec.IPFamilyPolicy = ptr.To(p)
		}
		s.Spec.IPFamilies = families
	}
}

func headless(s *corev1.Service)   { s.Spec.ClusterIP = corev1.ClusterIPNone }
func noSelector(s *corev1.Service) { s.Spec.Selector = nil }

func withIPs(ips ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = ips[0], ips }
}

// stacks are the kinds of cluster there are.
var stacks = map[string][]netip.Prefix{
	"v4": {v4CIDR}, "v6": {v6CIDR}, "v4v6": {v4CIDR, v6CIDR}, "v6v4": {v6CIDR, v4CIDR},
}

func familiesString(svc *core.Service) string {
	var b strings.Builder
	for _, f := range svc.Spec.IPFamilies {
		b.WriteString(map[core.IPFamily]string{core.IPv4Protocol: "4", core.IPv6Protocol: "6"}[f])
	}
	if svc.Spec.IPFamilyPolicy != nil {
		fmt.Fprintf(&b, " %s", *svc.Spec.IPFamilyPolicy)
	}
	return b.String()
}

// checkFamilies checks that addresses are those of the families, in order.
func checkFamilies(t *testing.T, svc *core.Service, want string) {
	t.Helper()
	if got := familiesString(svc); got != want {
		t.Errorf("families and policy %q, want %q", got, want)
	}
	if isHeadless(svc) || svc.Spec.Type == core.ServiceTypeExternalName {
		return
	}
	if len(svc.Spec.ClusterIPs) != len(svc.Spec.IPFamilies) {
		t.Errorf("clusterIPs %v for families %v", svc.Spec.ClusterIPs, svc.Spec.IPFamilies)
	}
	for i, ip := range svc.Spec.ClusterIPs {
		a := netip.MustParseAddr(ip)
		if a.Is4() != (svc.Spec.IPFamilies[i] == core.IPv4Protocol) || !v4CIDR.Contains(a) && !v6CIDR.Contains(a) {
			t.Errorf("clusterIPs[%d] is %s, family %s", i, ip, svc.Spec.IPFamilies[i])
		}
	}
}

func TestFamiliesOnCreate(t *testing.T) {
	all := []string{"v4", "v6", "v4v6", "v6v4"}
	for _, tt := range []struct {
		name string
		svc  *corev1.Service
		want [4]string // per cluster of all; "!..." is an error with ...
	}{
		{"nothing said", svc("s"), [4]string{"4 SingleStack", "6 SingleStack", "4 SingleStack", "6 SingleStack"}},
		{"single", svc("s", withPolicy(single)), [4]string{"4 SingleStack", "6 SingleStack", "4 SingleStack", "6 SingleStack"}},
		{"prefer", svc("s", withPolicy(prefer)), [4]string{"4 PreferDualStack", "6 PreferDualStack", "46 PreferDualStack", "64 PreferDualStack"}},
		{"require", svc("s", withPolicy(required)), [4]string{"!not configured for dual-stack", "!not configured for dual-stack", "46 RequireDualStack", "64 RequireDualStack"}},
		{"family 4", svc("s", withPolicy("", v4)), [4]string{"4 SingleStack", "!spec.ipFamilies[0]: Invalid value: \"IPv4\": not configured on this cluster", "4 SingleStack", "4 SingleStack"}},
		{"family 6", svc("s", withPolicy("", v6)), [4]string{"!not configured on this cluster", "6 SingleStack", "6 SingleStack", "6 SingleStack"}},
		{"prefer 6", svc("s", withPolicy(prefer, v6)), [4]string{"!not configured on this cluster", "6 PreferDualStack", "64 PreferDualStack", "64 PreferDualStack"}},
		{"require 4", svc("s", withPolicy(required, v4)), [4]string{"!dual-stack", "!dual-stack", "46 RequireDualStack", "46 RequireDualStack"}},
		{"require 64", svc("s", withPolicy(required, v6, v4)), [4]string{"!dual-stack", "!dual-stack", "64 RequireDualStack", "64 RequireDualStack"}},
		{"two families, no policy", svc("s", withPolicy("", v4, v6)), [4]string{"!must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families", "!must be", "!must be", "!must be"}},
		{"two families, single", svc("s", withPolicy(single, v4, v6)), [4]string{"!multiple IP families", "!multiple IP families", "!multiple IP families", "!multiple IP families"}},
		{"same family twice", svc("s", withPolicy(prefer, v4, v4)), [4]string{"!Duplicate", "!Duplicate", "!Duplicate", "!Duplicate"}},
		{"unknown family", svc("s", withPolicy(prefer, "IPv5")), [4]string{"!Unsupported value: \"IPv5\"", "!Unsupported", "!Unsupported", "!Unsupported"}},
		{"unknown policy", svc("s", withPolicy("Dual")), [4]string{"!Unsupported value: \"Dual\"", "!Unsupported", "!Unsupported", "!Unsupported"}},
		{"address 4", svc("s", withIPs("10.96.1.1")), [4]string{"4 SingleStack", "!IPv4 is not configured on this cluster", "4 SingleStack", "4 SingleStack"}},
		{"address 6", svc("s", withIPs("fd00:10:96::101")), [4]string{"!IPv6 is not configured on this cluster", "6 SingleStack", "6 SingleStack", "6 SingleStack"}},
		{"address 6, prefer", svc("s", withIPs("fd00:10:96::101"), withPolicy(prefer)), [4]string{"!IPv6 is not configured", "6 PreferDualStack", "64 PreferDualStack", "64 PreferDualStack"}},
		{"address 6, family 4", svc("s", withIPs("fd00:10:96::101"), withPolicy("", v4)), [4]string{"!expected an IPv4 value", "!expected an IPv4 value", "!expected an IPv4 value", "!expected an IPv4 value"}},
		{"two addresses, prefer", svc("s", withIPs("fd00:10:96::101", "10.96.1.1"), withPolicy(prefer)), [4]string{"!not configured", "!not configured", "64 PreferDualStack", "64 PreferDualStack"}},
		{"two addresses, single", svc("s", withIPs("10.96.1.1", "fd00:10:96::101"), withPolicy(single)), [4]string{"!multiple cluster IPs", "!multiple cluster IPs", "!multiple cluster IPs", "!multiple cluster IPs"}},
		{"two addresses of one family", svc("s", withIPs("10.96.1.1", "10.96.1.2"), withPolicy(prefer)), [4]string{"!may specify no more than one IP for each IP family", "!no more than one", "!no more than one", "!no more than one"}},
		{"headless", svc("s", headless), [4]string{"4 SingleStack", "6 SingleStack", "4 SingleStack", "6 SingleStack"}},
		{"headless, prefer", svc("s", headless, withPolicy(prefer)), [4]string{"4 PreferDualStack", "6 PreferDualStack", "46 PreferDualStack", "64 PreferDualStack"}},
		{"headless, require", svc("s", headless, withPolicy(required)), [4]string{"!dual-stack", "!dual-stack", "46 RequireDualStack", "64 RequireDualStack"}},
		{"headless by hand", svc("s", headless, noSelector), [4]string{"46 RequireDualStack", "64 RequireDualStack", "46 RequireDualStack", "64 RequireDualStack"}},
		{"headless by hand, single", svc("s", headless, noSelector, withPolicy(single)), [4]string{"4 SingleStack", "6 SingleStack", "4 SingleStack", "6 SingleStack"}},
		{"headless by hand, family 6", svc("s", headless, noSelector, withPolicy("", v6)), [4]string{"64 RequireDualStack", "64 RequireDualStack", "64 RequireDualStack", "64 RequireDualStack"}},
		{"external", svc("s", ofType(corev1.ServiceTypeExternalName)), [4]string{"", "", "", ""}},
		{"external, families", svc("s", ofType(corev1.ServiceTypeExternalName), withPolicy(single, v4)), [4]string{"!may not be set for ExternalName", "!may not be set for ExternalName", "!may not be set", "!may not be set"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i, stack := range all {
				t.Run(stack, func(t *testing.T) {
					c := newCluster(t, func(o *clusterOptions) { o.cidrs = stacks[stack] })
					got, err := c.create(tt.svc)
					c.checkAudit()
					if want, refused := strings.CutPrefix(tt.want[i], "!"); refused {
						if err == nil || !strings.Contains(err.Error(), want) {
							t.Errorf("error %v, want one with %q", err, want)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					checkFamilies(t, got, tt.want[i])
				})
			}
		})
	}
}

// TestPolicyTransitions patches the policy alone, from each to each, on each kind of cluster. The second family is
// claimed and released; the first never changes.
func TestPolicyTransitions(t *testing.T) {
	policies := []corev1.IPFamilyPolicy{single, prefer, required}
	for stack, cidrs := range stacks {
		dual := len(cidrs) == 2
		for _, from := range policies {
			for _, to := range policies {
				for _, kind := range []string{"ClusterIP", "LoadBalancer", "headless", "manual"} {
					if from == required && !dual && kind != "manual" {
						continue // cannot be made
					}
					t.Run(fmt.Sprintf("%s/%s/%s to %s", stack, kind, from, to), func(t *testing.T) {
						become := forms[slices.IndexFunc(forms, func(f form) bool { return f.name == kind })].become
						c := newCluster(t, func(o *clusterOptions) { o.cidrs = cidrs })
						before := c.mustCreate(svc("s", become, withPolicy(from)))
						after, err := c.edit("s", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr.To(to) })
						c.checkAudit()
						if to == required && !dual && kind != "manual" {
							if err == nil || !strings.Contains(err.Error(), "this cluster is not configured for dual-stack services") {
								t.Fatalf("error %v", err)
							}
							return
						}
						if err != nil {
							t.Fatal(err)
						}
						first, second := "4", "6"
						if strings.HasPrefix(stack, "v6") {
							first, second = second, first
						}
						want := first
						if to != single && (dual || kind == "manual") {
							want += second
						}
						checkFamilies(t, after, want+" "+string(to))
						if kind != "headless" && kind != "manual" && after.Spec.ClusterIP != before.Spec.ClusterIP {
							t.Errorf("clusterIP changed from %s to %s", before.Spec.ClusterIP, after.Spec.ClusterIP)
						}
						c.checkGone("s")
					})
				}
			}
		}
	}
}

func TestFamiliesOnUpdate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before *corev1.Service
		edit   func(*corev1.Service)
		want   string
	}{
		{"prefer stays as it is", svc("s", withPolicy(prefer)), func(s *corev1.Service) { s.Spec.Ports[0].Port = 81 }, "46 PreferDualStack"},
		{"second address asked for", svc("s"), func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy = ptr.To(prefer)
			s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, "fd00:10:96::77")
		}, "46 PreferDualStack"},
		{"second family asked for", svc("s"), func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy = ptr.To(required)
			s.Spec.IPFamilies = []corev1.IPFamily{v4, v6}
		}, "46 RequireDualStack"},
		{"second family without policy", svc("s"), func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{v4, v6} }, "!multiple IP families"},
		{"second address dropped, single", svc("s", withPolicy(prefer)), func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy = ptr.To(single)
			s.Spec.ClusterIPs, s.Spec.IPFamilies = s.Spec.ClusterIPs[:1], s.Spec.IPFamilies[:1]
		}, "4 SingleStack"},
		{"second address dropped, policy kept", svc("s", withPolicy(prefer)), func(s *corev1.Service) { s.Spec.ClusterIPs = s.Spec.ClusterIPs[:1] }, "!must be 'SingleStack' to release the secondary cluster IP"},
		{"second family dropped, policy kept", svc("s", withPolicy(required)), func(s *corev1.Service) { s.Spec.IPFamilies = s.Spec.IPFamilies[:1] }, "!must be 'SingleStack' to release the secondary IP family"},
		{"order of families", svc("s", withPolicy(prefer)), func(s *corev1.Service) { slices.Reverse(s.Spec.IPFamilies) }, "!expected an IPv6 value as indicated by `ipFamilies[0]`"},
		{"order of all", svc("s", withPolicy(prefer)), func(s *corev1.Service) {
			slices.Reverse(s.Spec.IPFamilies)
			slices.Reverse(s.Spec.ClusterIPs)
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		}, "!may not change once set"},
		{"first family changed", svc("s"), func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{v6} }, "!expected an IPv6 value"},
		{"address changed", svc("s"), withIPs("10.96.7.7"), "!spec.clusterIPs[0]: Invalid value: [\"10.96.7.7\"]: may not change once set"},
		{"clusterIP alone changed", svc("s"), func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.7.7" }, "!may not change once set"},
		{"clusterIPs alone changed", svc("s"), func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"10.96.7.7"} }, "!first value must match `clusterIP`"},
		{"clusterIP cleared", svc("s", withPolicy(prefer)), func(s *corev1.Service) { s.Spec.ClusterIP = "" }, "46 PreferDualStack"},
		{"clusterIPs cleared", svc("s", withPolicy(prefer)), func(s *corev1.Service) { s.Spec.ClusterIPs = nil }, "46 PreferDualStack"},
		{"policy cleared", svc("s", withPolicy(prefer)), func(s *corev1.Service) { s.Spec.IPFamilyPolicy = nil }, "46 PreferDualStack"},
		{"external becomes prefer", svc("s", ofType(corev1.ServiceTypeExternalName)), func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeClusterIP
			s.Spec.IPFamilyPolicy = ptr.To(prefer)
		}, "46 PreferDualStack"},
		{"external asks for an address", svc("s", ofType(corev1.ServiceTypeExternalName)), func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeClusterIP
			s.Spec.ClusterIP = "fd00:10:96::88"
		}, "6 SingleStack"},
		{"dual becomes external", svc("s", withPolicy(prefer)), ofType(corev1.ServiceTypeExternalName), ""},
		{"headless changes families", svc("s", headless), withPolicy(single, v6), "6 SingleStack"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			c.mustCreate(tt.before)
			got, err := c.edit("s", tt.edit)
			c.checkAudit()
			if want, refused := strings.CutPrefix(tt.want, "!"); refused {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("error %v, want one with %q", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkFamilies(t, got, tt.want)
		})
	}
}

// TestFamiliesOfTheClusterChange: a cluster that becomes dual-stack, or single-stack again, changes no Service by itself.
func TestFamiliesOfTheClusterChange(t *testing.T) {
	storage := newStorage(t)
	at := func(cidrs ...netip.Prefix) *cluster {
		return newCluster(t, func(o *clusterOptions) { o.storage, o.cidrs = storage, cidrs })
	}
	one := at(v4CIDR)
	one.mustCreate(svc("s", withPolicy(prefer)))
	two := at(v4CIDR, v6CIDR)
	if err := two.addCIDR("six", v6CIDR.String()); err != nil {
		t.Fatal(err)
	}
	relabel := func(s *corev1.Service) { s.Labels = map[string]string{"n": fmt.Sprint(len(s.Labels))} }
	got, err := two.edit("s", relabel)
	if err != nil {
		t.Fatal(err)
	}
	checkFamilies(t, got, "4 PreferDualStack")
	if got, err = two.edit("s", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr.To(required) }); err != nil {
		t.Fatal(err)
	}
	checkFamilies(t, got, "46 RequireDualStack")
	if _, err = two.edit("s", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr.To(prefer) }); err != nil {
		t.Fatal(err)
	}
	if got, err = one.edit("s", relabel); err != nil {
		t.Fatal(err)
	}
	checkFamilies(t, got, "46 PreferDualStack")
	if err := one.delete("s"); err != nil {
		t.Fatal(err)
	}
	one.checkAudit()
}
