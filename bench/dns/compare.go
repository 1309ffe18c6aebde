package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/netns"
)

// serverAddr is an address that CoreDNS has, and the Service kube-dns behind it.
const serverAddr = "198.51.100.53"

// comparison asks both servers the same questions about the same odd things,
// lets things change, and asks again, with each way of naming Pods. It fails if
// they differ in a way that is not known.
func comparison(ns *netns.NS, dir string, api *fakeapi.Server) error {
	if *coredns == "" {
		return errors.New("-compare: needs -coredns to compare with")
	}
	if *seed == 0 {
		*seed = rand.Uint64()%1_000_000 + 1
	}
	fmt.Printf("seed %d\n", *seed)
	stop, err := serveOutside(ns)
	if err != nil {
		return err
	}
	defer stop()
	// Each finds out which Service leads to it by an address that is not loopback's.
	if err := ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(serverAddr), Mask: net.CIDRMask(32, 32)}})
	}); err != nil {
		return err
	}
	w := newWorld(api, *seed)
	found := differences{byKind: map[string]*difference{}}
	for _, pods := range []string{"insecure", "verified", "disabled"} {
		if err := found.collect(ns, dir, w, pods); err != nil {
			return err
		}
	}
	return found.report()
}

// collect runs both servers and compares them, once and after each round of changes.
func (d *differences) collect(ns *netns.NS, dir string, w *world, pods string) error {
	all, err := candidates(dir, pods, true)
	if err != nil {
		return err
	}
	known := new(dns.Msg)
	known.SetQuestion("kube-dns.kube-system.svc.cluster.local.", dns.TypeA)
	for _, c := range all {
		p, err := c.run(ns, known)
		if err != nil {
			return err
		}
		defer p.stop()
	}
	for round := range *changes + 1 {
		if round > 0 {
			for range 150 {
				w.change()
			}
		}
		if err := w.settle(ns, all, pods); err != nil {
			return err
		}
		questions := w.questions()
		begin := time.Now()
		if err := d.ask(ns, all, questions); err != nil {
			return err
		}
		fmt.Printf("Pods %s, round %d: %d Services, %d slices, %d questions asked of both in %v\n",
			pods, round, len(w.services), len(w.slices), len(questions), time.Since(begin).Round(time.Millisecond))
	}
	return nil
}

// settle makes a mark in everything that is watched, and waits until both servers have seen it.
func (w *world) settle(ns *netns.NS, all []*candidate, pods string) error {
	name := fmt.Sprintf("mark-%d", w.next())
	w.spaces[name] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	w.api.Set(fakeapi.Namespaces, w.spaces[name])
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: name},
		Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}, Ports: []corev1.ServicePort{{Name: "p", Port: 1, Protocol: corev1.ProtocolTCP}}}}
	w.setService(svc)
	w.setSlice(w.slice(svc, "a-1", discoveryv1.AddressTypeIPv4, "10.1.1.1"))
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: name},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.1.1.2", PodIPs: []corev1.PodIP{{IP: "10.1.1.2"}}}}
	w.pods[key(p)] = p
	w.api.Set(fakeapi.Pods, p)
	marks := []string{"a." + name + ".svc.cluster.local."}
	if pods != "disabled" {
		marks = append(marks, "10-1-1-2."+name+".pod.cluster.local.")
	}
	for _, mark := range marks {
		m := new(dns.Msg)
		m.SetQuestion(mark, dns.TypeA)
		for _, c := range all {
			for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
				a, err := answer(ns, c.dns, m)
				if err == nil && a[0] == "NOERROR" {
					break
				}
				if time.Now().After(end) {
					return fmt.Errorf("%s does not see %s within a minute: %v, %v", c.name, mark, a, err)
				}
			}
		}
	}
	return nil
}

// ask puts every question to both, some at a time.
func (d *differences) ask(ns *netns.NS, all []*candidate, questions []question) error {
	work := make(chan question)
	errs := make(chan error, 8)
	var wg sync.WaitGroup
	for range cap(errs) {
		wg.Go(func() {
			var ends [2]*end
			for i, c := range all {
				ends[i] = &end{ns: ns, server: c.dns}
				defer ends[i].close()
			}
			for q := range work {
				var got [2]*dns.Msg
				for i, e := range ends {
					var err error
					if got[i], err = e.ask(q); err != nil {
						select {
						case errs <- fmt.Errorf("%s: %v: %w", all[i].name, q, err):
						default:
						}
					}
				}
				if got[0] != nil && got[1] != nil {
					d.compare(q, got[0], got[1])
				}
			}
		})
	}
	for _, q := range questions {
		work <- q
	}
	close(work)
	wg.Wait()
	close(errs)
	return <-errs
}

// end is one asker's sockets to one server.
type end struct {
	ns       *netns.NS
	server   string
	udp, tcp net.Conn
}

func (e *end) close() {
	for _, c := range []net.Conn{e.udp, e.tcp} {
		if c != nil {
			c.Close()
		}
	}
}

// ask sends a question and waits for its answer, asking again if that gets lost.
func (e *end) ask(q question) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.typ)
	conn, network := &e.udp, "udp"
	switch q.how {
	case ednsUDP:
		m.SetEdns0(1232, false)
	case largeUDP:
		m.SetEdns0(4096, true)
	case oddFlags:
		m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = false, true, true
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("what?")}, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "24a5ac1223344556"}}
	case overTCP:
		conn, network = &e.tcp, "tcp"
	}
	var err error
	for range 3 {
		if *conn == nil {
			if *conn, err = e.ns.DialContext(context.Background(), network, e.server); err != nil {
				return nil, err
			}
		}
		(*conn).SetDeadline(time.Now().Add(5 * time.Second))
		c := &dns.Conn{Conn: *conn, UDPSize: 4096}
		if err = c.WriteMsg(m); err == nil {
			for err == nil {
				var r *dns.Msg
				if r, err = c.ReadMsg(); err == nil && r.Id == m.Id {
					return r, nil
				}
			}
		}
		(*conn).Close()
		*conn = nil
	}
	return nil, err
}

// said is an answer with what may differ between any two answers taken out:
// the order of records, the zone's serial, and which record has which weight.
type said struct {
	rcode                  string
	aa, tc, ra, edns       bool
	rd, cd, ad             bool
	twice                  bool // a record is in one section twice
	answer, authority, add []string
	weights                []uint16
}

func read(m *dns.Msg) said {
	s := said{rcode: dns.RcodeToString[m.Rcode], aa: m.Authoritative, tc: m.Truncated, ra: m.RecursionAvailable, edns: m.IsEdns0() != nil,
		rd: m.RecursionDesired, cd: m.CheckingDisabled, ad: m.AuthenticatedData}
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		var out []string
		for _, rr := range section {
			switch r := rr.(type) {
			case *dns.OPT:
				continue
			case *dns.SOA:
				r.Serial = 0
			case *dns.SRV:
				s.weights = append(s.weights, r.Weight)
				r.Weight = 0
			}
			out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
		}
		slices.Sort(out)
		s.twice = s.twice || len(slices.Compact(slices.Clone(out))) < len(out)
		slices.Sort(s.weights)
		*[]*[]string{&s.answer, &s.authority, &s.add}[i] = out
	}
	return s
}
