package proxy_test

import (
	"encoding/binary"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/testenv"
)

// sayName answers every datagram with the address it came to.
func sayName(c net.PacketConn) {
	buf := make([]byte, 64)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.LocalAddr().String())
		c.WriteTo([]byte(host), from)
	}
}

// flows is a Service of UDP or SCTP.
type flows struct {
	name, ip   string
	protocol   corev1.Protocol
	port       corev1.ServicePort
	targetPort int32
}

var (
	dnsFlows  = flows{"dns", "10.96.0.53", corev1.ProtocolUDP, corev1.ServicePort{Port: 53, NodePort: 30053, Protocol: corev1.ProtocolUDP}, 5353}
	sctpFlows = flows{"sctp", "10.96.0.132", corev1.ProtocolSCTP, corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolSCTP}, 8080}
)

// setService sets the Service.
func (f flows) setService(c *cluster) {
	typ := corev1.ServiceTypeClusterIP
	if f.port.NodePort != 0 {
		typ = corev1.ServiceTypeNodePort
	}
	c.api.Set(fakeapi.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: f.name},
		Spec: corev1.ServiceSpec{Type: typ, ClusterIP: f.ip, ClusterIPs: []string{f.ip}, Ports: []corev1.ServicePort{f.port}}})
}

// setEndpoints sets the endpoints given by number.
func (f flows) setEndpoints(c *cluster, which ...int) {
	var name string
	sl := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: f.name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: f.name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &f.targetPort, Protocol: &f.protocol}},
	}
	for _, i := range which {
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{endpointIP(i)}})
	}
	c.api.Set(fakeapi.EndpointSlices, sl)
}

// flow is a client that sends from one socket without a pause.
type flow struct {
	t    *testing.T
	name string
	conn net.Conn
}

func (c *cluster) flow(t *testing.T, address string) *flow {
	t.Helper()
	conn, err := c.client.Dial("udp4", address, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &flow{t, address, conn}
}

// ask sends one datagram and returns who answers, or "".
func (f *flow) ask() string {
	f.conn.Write([]byte("who?"))
	f.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	buf := make([]byte, 64)
	n, err := f.conn.Read(buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// answered waits until one of the servers given answers, sending all the time.
func (f *flow) answered(what string, which ...int) {
	f.t.Helper()
	var got string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		got = f.ask()
		for _, i := range which {
			if got == endpointIP(i) {
				return
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	f.t.Fatalf("%s: %s is answered by %q, want one of %v", what, f.name, got, which)
}

// TestUDPFlows: a client that never pauses is led to an endpoint that is there.
func TestUDPFlows(t *testing.T) {
	testenv.RequireRoot(t)
	c := newCluster(t)
	for i := range endpoints {
		go sayName(c.servers.ListenPacket(t, "udp4", endpointIP(i)+":5353"))
	}
	binary := testenv.NodeProgram(t, "one")
	p := c.start(t, binary)
	cluster, port := c.flow(t, "10.96.0.53:53"), c.flow(t, "192.0.2.1:30053")
	both := func(what string, which ...int) {
		t.Helper()
		cluster.answered(what, which...)
		port.answered(what, which...)
	}
	for range 4 { // before there is a Service: nobody answers, but the kernel may remember
		if got := cluster.ask() + port.ask(); got != "" {
			t.Fatalf("answered by %q without a Service", got)
		}
	}
	dnsFlows.setService(c)
	dnsFlows.setEndpoints(c, 0)
	both("first endpoint", 0)

	// Another endpoint comes: flows under way stay.
	dnsFlows.setEndpoints(c, 0, 1)
	for range 50 {
		for _, f := range []*flow{cluster, port} {
			if got := f.ask(); got != endpointIP(0) && got != "" { // a busy machine may be late
				t.Fatalf("the flow to %s moved to %s though its endpoint serves", f.name, got)
			}
		}
	}
	dnsFlows.setEndpoints(c, 1)
	both("its endpoint is gone", 1)
	dnsFlows.setEndpoints(c)
	for deadline := time.Now().Add(30 * time.Second); cluster.ask() != "" || port.ask() != ""; {
		if time.Now().After(deadline) {
			t.Fatal("still answered though no endpoint is left")
		}
	}
	dnsFlows.setEndpoints(c, 2)
	both("an endpoint again", 2)

	// The same while no proxy is there to see it.
	p.stop(syscall.SIGKILL)
	dnsFlows.setEndpoints(c, 3)
	both("without a proxy, by what it left", 2)
	p = c.start(t, binary)
	both("after a start", 3)
	if s := p.text(); strings.Contains(s, "level=ERROR") {
		t.Errorf("the proxy complains:\n%s", s)
	}
}

// TestSCTPFlows: the same for SCTP, with packets of raw sockets: a client that
// goes on sending INIT keeps its entry of connection tracking alive for ever.
func TestSCTPFlows(t *testing.T) {
	testenv.RequireRoot(t)
	c := newCluster(t)
	arrived := make(chan int, 1)
	for i := range endpoints {
		server := c.servers.ListenPacket(t, "ip4:132", endpointIP(i))
		go func() {
			buf := make([]byte, 256)
			for {
				n, from, err := server.ReadFrom(buf)
				if err != nil {
					return
				}
				if n < 13 || buf[12] != testenv.SCTPInit {
					continue
				}
				server.WriteTo(testenv.SCTPPacket(8080, binary.BigEndian.Uint16(buf), 4711, testenv.SCTPInitAck), from)
				select {
				case arrived <- i:
				default:
				}
			}
		}()
	}
	program := testenv.NodeProgram(t, "one")
	p := c.start(t, program)
	client := c.client.ListenPacket(t, "ip4:132", "0.0.0.0")
	to := &net.IPAddr{IP: net.ParseIP(sctpFlows.ip)}
	ask := func() int { // who gets the packet, or -1
		for len(arrived) > 0 {
			<-arrived
		}
		if _, err := client.WriteTo(testenv.SCTPPacket(5000, 80, 0, testenv.SCTPInit), to); err != nil {
			t.Fatal(err)
		}
		select {
		case i := <-arrived:
			return i
		case <-time.After(200 * time.Millisecond):
			return -1
		}
	}
	leadsTo := func(what string, want int) {
		t.Helper()
		got := -1
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if got = ask(); got == want {
				return
			}
		}
		t.Fatalf("%s: packets go to endpoint %d, want %d", what, got, want)
	}
	if got := ask(); got >= 0 {
		t.Fatalf("endpoint %d was reached without a Service", got)
	}
	sctpFlows.setService(c)
	sctpFlows.setEndpoints(c, 0)
	leadsTo("first endpoint", 0)
	sctpFlows.setEndpoints(c, 0, 1)
	for range 50 {
		if got := ask(); got > 0 {
			t.Fatalf("the flow moved to endpoint %d though its endpoint serves", got)
		}
	}
	sctpFlows.setEndpoints(c, 1)
	leadsTo("its endpoint is gone", 1)
	p.stop(syscall.SIGKILL)
	sctpFlows.setEndpoints(c, 2)
	leadsTo("without a proxy, by what it left", 1)
	p = c.start(t, program)
	leadsTo("after a start", 2)
	if s := p.text(); strings.Contains(s, "level=ERROR") {
		t.Errorf("the proxy complains:\n%s", s)
	}
}
