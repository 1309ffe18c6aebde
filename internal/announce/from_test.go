package announce

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/api/v1alpha1"
)

func TestAnnounceFrom(t *testing.T) {
	rack := func(names ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "rack", Operator: metav1.LabelSelectorOpIn, Values: names}}}
	}
	addr := netip.MustParseAddr("192.0.2.1")
	for _, tt := range []struct {
		name string
		spec v1alpha1.AnnounceSpec
		want map[string][]string // node to its patterns
	}{
		{"by all", v1alpha1.AnnounceSpec{}, map[string][]string{"a1": nil, "a2": nil, "b1": nil}},
		{"by some, as ever", v1alpha1.AnnounceSpec{NodeSelector: rack("a"), Interfaces: []string{"eth*"}}, map[string][]string{"a1": {"eth*"}, "a2": {"eth*"}}},
		{"each rack on its own link", v1alpha1.AnnounceSpec{From: []v1alpha1.AnnounceFrom{
			{NodeSelector: rack("a"), Interfaces: []string{"eth0"}}, {NodeSelector: rack("b"), Interfaces: []string{"ens*"}},
		}}, map[string][]string{"a1": {"eth0"}, "a2": {"eth0"}, "b1": {"ens*"}}},
		{"the links of all that select it", v1alpha1.AnnounceSpec{From: []v1alpha1.AnnounceFrom{
			{Interfaces: []string{"eno1"}}, {NodeSelector: rack("b"), Interfaces: []string{"ens18"}},
		}}, map[string][]string{"a1": {"eno1"}, "a2": {"eno1"}, "b1": {"eno1", "ens18"}}},
		{"a list of selectors", v1alpha1.AnnounceSpec{Interfaces: []string{"eth1"}, From: []v1alpha1.AnnounceFrom{
			{NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": "a1"}}}, {NodeSelector: rack("b")},
		}}, map[string][]string{"a1": {"eth1"}, "b1": {"eth1"}}},
		{"within the nodes of the pool", v1alpha1.AnnounceSpec{NodeSelector: rack("a"), From: []v1alpha1.AnnounceFrom{{NodeSelector: rack("b")}}}, nil},
		{"the usual links and others", v1alpha1.AnnounceSpec{NodeSelector: rack("b"), From: []v1alpha1.AnnounceFrom{{}, {Interfaces: []string{"ens18"}}}}, map[string][]string{"b1": nil}},
	} {
		p := newPlan()
		for _, n := range []string{"a1", "a2", "b1"} {
			p.setNode(n, &nodeFacts{labels: map[string]string{"rack": n[:1], "name": n}})
		}
		p.setService("default/web", &serviceFacts{addrs: []netip.Addr{addr}, origin: []string{""}}, nil)
		pool := &v1alpha1.IPPool{Spec: v1alpha1.IPPoolSpec{Addresses: []string{"192.0.2.0/24"}, Announce: tt.spec}}
		p.setPools([]poolFacts{poolFactsOf(pool)})
		e := p.entries[addr]
		got := map[string][]string{}
		for n := range e.Nodes {
			got[n] = e.patterns(n)
		}
		if !maps.EqualFunc(got, tt.want, slices.Equal[[]string]) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		// The same again is no change; a copy is the same.
		if changed := p.setPools([]poolFacts{poolFactsOf(pool.DeepCopy())}); len(changed) != 0 {
			t.Errorf("%s: changed by nothing", tt.name)
		}
	}
}
