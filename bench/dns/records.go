package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/netns"
)

const perNamespace = 100

// fill puts Services into the API and returns questions about them.
func fill(api *fakeapi.Server, n int) (questions []*dns.Msg) {
	rnd := rand.New(rand.NewPCG(1, 2))
	ask := func(name string, typ uint16) {
		m := new(dns.Msg)
		m.SetQuestion(name, typ)
		m.SetEdns0(1232, false)
		questions = append(questions, m)
	}
	portName, proto, port, yes := "http", corev1.ProtocolTCP, int32(8080), true
	for i := range n {
		ns := fmt.Sprintf("ns-%d", i/perNamespace)
		if i%perNamespace == 0 {
			api.Set(fakeapi.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
		}
		name := fmt.Sprintf("service-%d", i)
		ip := fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255)
		endpoints := 2
		svc := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, UID: "1f3f7e9c-3f5d-4b0c-9d6c-000000000000",
				Labels:      map[string]string{"app": name, "app.kubernetes.io/managed-by": "bench"},
				Annotations: map[string]string{"example.org/note": strings.Repeat("x", 100)}},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
				Selector: map[string]string{"app": name}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
		if i%10 == 0 {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs, endpoints = "None", []string{"None"}, 5
		}
		api.Set(fakeapi.Services, svc)
		es := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
			ObjectMeta: metav1.ObjectMeta{Name: name + "-abcde", Namespace: ns, GenerateName: name + "-",
				Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"}},
			Ports: []discoveryv1.EndpointPort{{Name: &portName, Protocol: &proto, Port: &port}}}
		for j := range endpoints {
			node := fmt.Sprintf("node-%d", rnd.IntN(100))
			es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{
				Addresses:  []string{fmt.Sprintf("10.%d.%d.%d", 128+i>>13, i>>5&255, i&31<<3|j)},
				Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes}, NodeName: &node,
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: fmt.Sprintf("%s-%d", name, j)}})
		}
		api.Set(fakeapi.EndpointSlices, es)
	}
	for range 5000 {
		i := rnd.IntN(n)
		name := fmt.Sprintf("service-%d.ns-%d.svc.cluster.local.", i, i/perNamespace)
		switch rnd.IntN(10) {
		case 0:
			ask(name, dns.TypeAAAA)
		case 1: // a search path with what is outside
			ask(fmt.Sprintf("www.example.com.ns-%d.svc.cluster.local.", i/perNamespace), dns.TypeA)
		case 2: // and with another namespace's Service
			ask(fmt.Sprintf("service-%d.ns-%d.ns-0.svc.cluster.local.", i, i/perNamespace), dns.TypeA)
		default:
			ask(name, dns.TypeA)
		}
	}
	return questions
}

// sameAnswers checks that all servers say the same.
func sameAnswers(ns *netns.NS, all []*candidate, questions []*dns.Msg) error {
	for i := 0; i < len(questions); i += 25 {
		var first []string
		for j, c := range all {
			got, err := answer(ns, c.dns, questions[i])
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if j == 0 {
				first = got
			} else if !slices.Equal(got, first) {
				return fmt.Errorf("%v: %s says %v, %s says %v", questions[i].Question[0], all[0].name, first, c.name, got)
			}
		}
	}
	return nil
}

// answer asks once: the response code and the records, sorted.
func answer(ns *netns.NS, server string, m *dns.Msg) ([]string, error) {
	conn, err := ns.DialContext(context.Background(), "udp", server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.(*net.UDPConn).SetDeadline(time.Now().Add(5 * time.Second))
	dc := &dns.Conn{Conn: conn, UDPSize: 4096}
	if err := dc.WriteMsg(m); err != nil {
		return nil, err
	}
	r, err := dc.ReadMsg()
	if err != nil {
		return nil, err
	}
	out := []string{dns.RcodeToString[r.Rcode]}
	for _, rr := range r.Answer {
		rr.Header().Ttl = 0
		out = append(out, rr.String())
	}
	slices.Sort(out[1:])
	return out, nil
}
