package endpoints

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func handWritten(subsets ...v1.EndpointSubset) *v1.Endpoints {
	return &v1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "db", UID: "e1", Labels: map[string]string{"team": "x"},
			Annotations: map[string]string{"note": "by hand", v1.LastAppliedConfigAnnotation: "{}", v1.EndpointsLastChangeTriggerTime: "t"},
		},
		Subsets: subsets,
	}
}

func TestMirrorsOf(t *testing.T) {
	p := []v1.EndpointPort{{Name: "sql", Port: 5432, Protocol: "TCP"}}
	slices, invalid, skipped := mirrorsOf(handWritten(v1.EndpointSubset{
		Addresses: []v1.EndpointAddress{
			{IP: "192.0.2.1", Hostname: "db-0", NodeName: ptr.To("node-1")}, {IP: "2001:DB8::1"}, {IP: "not an address"}, {IP: "2001:db8:0::1"},
		},
		NotReadyAddresses: addresses("192.0.2.2"),
		Ports:             p,
	}))
	if invalid != 1 || skipped != 0 || len(slices) != 2 {
		t.Fatalf("%d invalid, %d skipped, %d slices", invalid, skipped, len(slices))
	}
	for _, s := range slices {
		if s.GenerateName != "db-" || s.Labels[discovery.LabelServiceName] != "db" || s.Labels[discovery.LabelManagedBy] != mirrorsManagedBy || s.Labels["team"] != "x" {
			t.Errorf("labels %v", s.Labels)
		}
		if len(s.Annotations) != 1 || s.Annotations["note"] != "by hand" {
			t.Errorf("annotations %v", s.Annotations)
		}
		if o := s.OwnerReferences; len(o) != 1 || o[0].Kind != "Endpoints" || o[0].UID != "e1" {
			t.Errorf("owner %v", o)
		}
		if len(s.Ports) != 1 || *s.Ports[0].Port != 5432 || *s.Ports[0].Name != "sql" {
			t.Errorf("ports %v", s.Ports)
		}
		var got string
		for _, ep := range s.Endpoints {
			got += fmt.Sprintf("%s=%v ", ep.Addresses[0], *ep.Conditions.Ready)
		}
		want := map[discovery.AddressType]string{discovery.AddressTypeIPv4: "192.0.2.1=true 192.0.2.2=false ", discovery.AddressTypeIPv6: "2001:db8::1=true "}[s.AddressType]
		if got != want {
			t.Errorf("%s: %q, want %q", s.AddressType, got, want)
		}
	}

	var many []v1.EndpointAddress
	for i := range maxMirrored + 3 {
		many = append(many, v1.EndpointAddress{IP: fmt.Sprintf("10.0.%d.%d", i/256, i%256)})
	}
	slices, _, skipped = mirrorsOf(handWritten(v1.EndpointSubset{Addresses: many, Ports: p}))
	if skipped != 3 || len(slices) != 1 || len(slices[0].Endpoints) != maxMirrored {
		t.Errorf("too many: %d skipped, %d slices", skipped, len(slices))
	}
}

func TestPlanMirrors(t *testing.T) {
	subset := func(port int32, ips ...string) v1.EndpointSubset {
		return v1.EndpointSubset{Addresses: addresses(ips...), Ports: []v1.EndpointPort{{Port: port, Protocol: "TCP"}}}
	}
	made := func(name string, subsets ...v1.EndpointSubset) *discovery.EndpointSlice {
		s, _, _ := mirrorsOf(handWritten(subsets...))
		s[0].Name, s[0].GenerateName = name, ""
		return s[0]
	}
	for _, test := range []struct {
		what     string
		existing []*discovery.EndpointSlice
		subsets  []v1.EndpointSubset
		want     string // created, updated, deleted
	}{
		{"new", nil, []v1.EndpointSubset{subset(1, "10.0.0.1")}, "+1"},
		{"unchanged", []*discovery.EndpointSlice{made("a", subset(1, "10.0.0.1", "10.0.0.2"))}, []v1.EndpointSubset{subset(1, "10.0.0.2", "10.0.0.1")}, ""},
		{"changed", []*discovery.EndpointSlice{made("a", subset(1, "10.0.0.1"))}, []v1.EndpointSubset{subset(1, "10.0.0.3")}, "~a"},
		{"other ports reuse a slice", []*discovery.EndpointSlice{made("a", subset(1, "10.0.0.1"))}, []v1.EndpointSubset{subset(2, "10.0.0.1")}, "~a"},
		{"the other family does not", []*discovery.EndpointSlice{made("a", subset(1, "10.0.0.1"))}, []v1.EndpointSubset{subset(1, "fd00::1")}, "+1 -a"},
		{"one too many", []*discovery.EndpointSlice{made("b", subset(1, "10.0.0.1")), made("a", subset(1, "10.0.0.1"))}, []v1.EndpointSubset{subset(1, "10.0.0.1")}, "-b"},
		{"emptied", []*discovery.EndpointSlice{made("a", subset(1, "10.0.0.1"))}, nil, "-a"},
	} {
		desired, _, _ := mirrorsOf(handWritten(test.subsets...))
		plan := planMirrors(test.existing, desired)
		var got string
		add := func(s string) {
			if got != "" {
				got += " "
			}
			got += s
		}
		if n := len(plan.create); n > 0 {
			add(fmt.Sprintf("+%d", n))
		}
		for _, s := range plan.update {
			add("~" + s.Name)
		}
		for _, s := range plan.delete {
			add("-" + s.Name)
		}
		if got != test.want {
			t.Errorf("%s: %q, want %q", test.what, got, test.want)
		}
	}
}
