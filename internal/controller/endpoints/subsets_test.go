package endpoints

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func addresses(ips ...string) []v1.EndpointAddress {
	var out []v1.EndpointAddress
	for _, ip := range ips {
		out = append(out, v1.EndpointAddress{IP: ip})
	}
	return out
}

func onPod(ip, uid string) v1.EndpointAddress {
	return v1.EndpointAddress{IP: ip, TargetRef: &v1.ObjectReference{UID: types.UID(uid)}}
}

func TestPack(t *testing.T) {
	http := v1.EndpointPort{Name: "http", Port: 80, Protocol: "TCP"}
	dns := v1.EndpointPort{Name: "dns", Port: 53, Protocol: "UDP"}
	h2c := func() v1.EndpointPort {
		return v1.EndpointPort{Name: "h2", Port: 81, Protocol: "TCP", AppProtocol: ptr.To("kubernetes.io/h2c")}
	}
	ports := func(p ...v1.EndpointPort) []v1.EndpointPort { return p }
	for what, test := range map[string]struct{ in, want []v1.EndpointSubset }{
		"nothing": {nil, []v1.EndpointSubset{}},
		"an address without a port": {
			[]v1.EndpointSubset{{Addresses: addresses("10.0.0.1")}},
			[]v1.EndpointSubset{{Addresses: addresses("10.0.0.1")}},
		},
		"the same ports meet, sorted": {
			[]v1.EndpointSubset{
				{Addresses: addresses("10.0.0.2"), Ports: ports(http)}, {Addresses: addresses("10.0.0.2"), Ports: ports(dns)},
				{Addresses: addresses("10.0.0.1"), Ports: ports(dns, http)},
			},
			[]v1.EndpointSubset{{Addresses: addresses("10.0.0.1", "10.0.0.2"), Ports: ports(dns, http)}},
		},
		"ready and not share a subset": {
			[]v1.EndpointSubset{{Addresses: addresses("10.0.0.1"), Ports: ports(http)}, {NotReadyAddresses: addresses("10.0.0.2"), Ports: ports(http)}},
			[]v1.EndpointSubset{{Addresses: addresses("10.0.0.1"), NotReadyAddresses: addresses("10.0.0.2"), Ports: ports(http)}},
		},
		"not ready beats ready": {
			[]v1.EndpointSubset{{Addresses: addresses("10.0.0.1"), NotReadyAddresses: addresses("10.0.0.1"), Ports: ports(http)}},
			[]v1.EndpointSubset{{NotReadyAddresses: addresses("10.0.0.1"), Ports: ports(http)}},
		},
		"ready on some ports only": {
			[]v1.EndpointSubset{{Addresses: addresses("10.0.0.1"), Ports: ports(http)}, {NotReadyAddresses: addresses("10.0.0.1"), Ports: ports(dns)}},
			[]v1.EndpointSubset{{NotReadyAddresses: addresses("10.0.0.1"), Ports: ports(dns)}, {Addresses: addresses("10.0.0.1"), Ports: ports(http)}},
		},
		"two pods on one host address": {
			[]v1.EndpointSubset{{Addresses: []v1.EndpointAddress{onPod("10.0.0.1", "b")}, Ports: ports(http)}, {Addresses: []v1.EndpointAddress{onPod("10.0.0.1", "a")}, Ports: ports(http)}},
			[]v1.EndpointSubset{{Addresses: []v1.EndpointAddress{onPod("10.0.0.1", "a"), onPod("10.0.0.1", "b")}, Ports: ports(http)}},
		},
		"application protocols compare by value": {
			[]v1.EndpointSubset{{Addresses: addresses("10.0.0.1"), Ports: ports(h2c())}, {Addresses: addresses("10.0.0.2"), Ports: ports(h2c())}},
			[]v1.EndpointSubset{{Addresses: addresses("10.0.0.1", "10.0.0.2"), Ports: ports(h2c())}},
		},
	} {
		got := pack(test.in)
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		if diff := cmp.Diff(got, pack(got)); diff != "" {
			t.Errorf("%s: packing twice differs:\n%s", what, diff)
		}
	}
}

func TestTruncate(t *testing.T) {
	many := func(n int) []v1.EndpointAddress {
		var ips []string
		for i := range n {
			ips = append(ips, fmt.Sprintf("10.0.%d.%d", i/256, i%256))
		}
		return addresses(ips...)
	}
	for _, test := range []struct {
		what            string
		in              []v1.EndpointSubset
		ready, notReady int
		cut             bool
	}{
		{"few", []v1.EndpointSubset{{Addresses: many(10), NotReadyAddresses: many(5)}}, 10, 5, false},
		{"exactly full", []v1.EndpointSubset{{Addresses: many(600)}, {NotReadyAddresses: many(400)}}, 600, 400, false},
		{"ready ones first", []v1.EndpointSubset{{Addresses: many(900), NotReadyAddresses: many(300)}}, 900, 100, true},
		{"too many ready", []v1.EndpointSubset{{Addresses: many(900), NotReadyAddresses: many(10)}, {Addresses: many(600)}}, 1000, 0, true},
		{"by share", []v1.EndpointSubset{{NotReadyAddresses: many(900)}, {NotReadyAddresses: many(300)}, {Addresses: many(1)}}, 1, 999, true},
	} {
		cut := truncate(test.in)
		ready, notReady := count(test.in)
		if cut != test.cut || ready != test.ready || notReady != test.notReady {
			t.Errorf("%s: cut %v to %d ready and %d not, want %v, %d and %d", test.what, cut, ready, notReady, test.cut, test.ready, test.notReady)
		}
	}
}
