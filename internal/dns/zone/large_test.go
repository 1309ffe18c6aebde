package zone_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/dns/zone"
)

// BenchmarkLarge fills a store with 100,000 Services, each with an
// EndpointSlice of two endpoints, and prints what they take in memory and how long
// the store itself takes to index them. (bench/dns.sh measures a whole process
// with its API.)
func BenchmarkLarge(b *testing.B) {
	const n = 100_000
	for range b.N {
		before := heap()
		s, err := zone.New(zone.Options{})
		if err != nil {
			b.Fatal(err)
		}
		var took time.Duration
		for i := range n {
			ip := fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255)
			ns, name := fmt.Sprintf("ns-%d", i/100), fmt.Sprintf("service-%d", i)
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}, Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip},
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
			es := slice(name, "a", []endpoint{{ip: fmt.Sprintf("10.%d.%d.%d", 128+i>>13, i>>5&255, i&31<<3)}, {ip: fmt.Sprintf("10.%d.%d.%d", 128+i>>13, i>>5&255, i&31<<3|1)}})
			es.Namespace = ns
			begin := time.Now()
			if err := s.Load(svc, es); err != nil {
				b.Fatal(err)
			}
			took += time.Since(begin)
		}
		after := heap()
		if m, _ := ask(b, s, "service-99999.ns-999.svc.cluster.local.", dns.TypeA, wire.MinSize); len(m.Answer) != 1 {
			b.Fatalf("the last Service has no name: %v", m)
		}
		b.ReportMetric(float64(after-before)/n, "B/Service")
		b.ReportMetric(float64(after-before)/(1<<20), "MB")
		b.ReportMetric(took.Seconds()*1000, "ms-to-index")
		runtime.KeepAlive(s)
	}
}

// BenchmarkAnswer is one question, from datagram to datagram.
func BenchmarkAnswer(b *testing.B) {
	s := newStore(b, zone.Options{}, cluster()...)
	m := new(dns.Msg)
	m.SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA)
	raw, _ := m.Pack()
	var q wire.Query
	var r wire.Reply
	buf := make([]byte, 0, 1232)
	b.ReportAllocs()
	for b.Loop() {
		q.Parse(raw)
		r.Start(&q, buf, 512)
		out := s.Answer(&q, &r)
		r.Finish(out.Rcode, out.Flags, 1232)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
