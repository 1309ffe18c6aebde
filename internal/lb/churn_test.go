package lb_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/lb"
)

// testChurn changes things until it has done churnChanges, and addresses have
// been given churnGiven times; for churnMax at most.
const (
	churnChanges = 400
	churnGiven   = 100
	churnMax     = 12 * time.Second
)

// view is what matters of a Service when addresses are shared.
type view struct {
	ips, ports map[string]bool
	key        string
	local      bool
}

func viewOf(svc *corev1.Service) view {
	v := view{ips: map[string]bool{}, ports: map[string]bool{}, key: svc.Annotations[v1alpha1.AnnotationShareKey],
		local: svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		v.ips[in.IP] = true
	}
	for _, p := range svc.Spec.Ports {
		v.ports[fmt.Sprint(p.Protocol, p.Port)] = true
	}
	return v
}

// mayShare says whether two Services may have the same address. All have the
// same selector here: none, and so each its own endpoints.
func (v view) mayShare(o view) bool {
	for p := range v.ports {
		if o.ports[p] {
			return false
		}
	}
	return v.key != "" && v.key == o.key && !v.local && !o.local
}

// observer sees every version of every Service, in order.
type observer struct {
	t      *testing.T
	past   map[types.UID][]view // the last one is what is now
	names  map[types.UID]string
	gained int
	shared int
}

// see takes in an event. A Service that gets an address that another has must be
// one that may share it, by what either has ever asked for: a controller cannot
// know what is asked for while it writes.
func (o *observer) see(e watch.Event) {
	svc, ok := e.Object.(*corev1.Service)
	if !ok {
		o.t.Errorf("the watch ended: %v", e.Object)
		return
	}
	if e.Type == watch.Deleted {
		delete(o.past, svc.UID)
		delete(o.names, svc.UID)
		return
	}
	var before view
	if p := o.past[svc.UID]; len(p) > 0 {
		before = p[len(p)-1]
	}
	now := viewOf(svc)
	o.past[svc.UID] = append(o.past[svc.UID], now)
	o.names[svc.UID] = svc.Name
	for ip := range now.ips {
		if before.ips[ip] {
			continue
		}
		o.gained++
		for uid, other := range o.past {
			if uid == svc.UID || !other[len(other)-1].ips[ip] {
				continue
			}
			o.shared++
			if !slices.ContainsFunc(o.past[svc.UID], func(a view) bool { return slices.ContainsFunc(other, a.mayShare) }) {
				o.t.Errorf("%s gets %s, which %s has", svc.Name, ip, o.names[uid])
			}
		}
	}
}

// exact returns which Services have the same address although they may not.
func (o *observer) exact() string {
	for a, pa := range o.past {
		for b, pb := range o.past {
			x, y := pa[len(pa)-1], pb[len(pb)-1]
			for ip := range x.ips {
				if a != b && y.ips[ip] && !x.mayShare(y) {
					return fmt.Sprintf("%s and %s both have %s", o.names[a], o.names[b], ip)
				}
			}
		}
	}
	return ""
}

// mortal cuts a controller off from the API server, as its death would: it
// cannot give its Lease back.
type mortal struct {
	http.RoundTripper
	dead *atomic.Bool
}

func (m mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	if m.dead.Load() {
		return nil, errors.New("dead")
	}
	return m.RoundTripper.RoundTrip(r)
}

// testChurn has people change Services and pools, and controllers come, go and
// die, all at random and at the same time, and looks that no address is ever
// in the statuses of two Services that may not share it, and that none is lost.
func testChurn(t *testing.T, w *world) {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("FAIRWAY_LB_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("FAIRWAY_LB_SEED: %v", err)
		}
	}
	t.Logf("FAIRWAY_LB_SEED=%d", seed)
	for name := range churnPools {
		w.pool(name, v1alpha1.IPPoolSpec{Addresses: churnPools[name][0]})
	}
	services := w.client.CoreV1().Services("default")
	list, err := services.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	events, err := services.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	seen := &observer{t: t, past: map[types.UID][]view{}, names: map[types.UID]string{}}

	ctx, cancel := context.WithTimeout(t.Context(), churnMax)
	defer cancel()
	var wg sync.WaitGroup
	var done atomic.Int64
	// act does something again and again; what the API server refuses is as good.
	act := func(n uint64, pause time.Duration, f func(*rand.Rand) error) {
		r := rand.New(rand.NewPCG(seed, n))
		wg.Go(func() {
			for ctx.Err() == nil {
				err := f(r)
				switch {
				case err == nil:
					done.Add(1)
				case ctx.Err() != nil, apierrors.IsNotFound(err), apierrors.IsAlreadyExists(err), apierrors.IsConflict(err), apierrors.IsInvalid(err):
				default:
					t.Errorf("API: %v", err)
				}
				time.Sleep(time.Duration(r.Int64N(int64(pause))))
			}
		})
	}
	for i := range uint64(4) {
		act(i, 20*time.Millisecond, func(r *rand.Rand) error { return w.changeService(ctx, r) })
	}
	act(100, 600*time.Millisecond, func(r *rand.Rand) error { return w.changePool(ctx, r) })
	// Three controllers.
	type one struct {
		stop func()
		dead *atomic.Bool
	}
	var all [3]one
	start := func(i int) {
		dead := new(atomic.Bool)
		all[i] = one{w.controller(func(o *lb.Options) {
			o.Config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return mortal{rt, dead} })
		}), dead}
	}
	for i := range all {
		start(i)
	}
	act(200, 1200*time.Millisecond, func(r *rand.Rand) error {
		i := r.IntN(len(all))
		all[i].dead.Store(r.IntN(8) == 0)
		all[i].stop()
		start(i)
		return nil
	})
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	for over := false; !over; {
		select {
		case e := <-events.ResultChan():
			seen.see(e)
			if done.Load() >= churnChanges && seen.gained >= churnGiven {
				cancel()
			}
		case <-ended:
			over = true
		}
	}
	// Nobody changes anything any more: it comes to rest in good order.
	drain := func() {
		for {
			select {
			case e := <-events.ResultChan():
				seen.see(e)
			case <-time.After(100 * time.Millisecond):
				return
			}
		}
	}
	w.eventually("no address is in two statuses: "+seen.exact(), func() bool { drain(); return seen.exact() == "" })
	t.Logf("%d changes; addresses were given %d times, %d of them shared; %d Services are left", done.Load(), seen.gained, seen.shared, len(seen.past))
	if seen.gained == 0 {
		t.Error("nothing was given out at all")
	}
	for _, name := range slices.Sorted(maps.Values(seen.names)) {
		if strings.HasPrefix(name, "churn-") {
			if err := services.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				t.Fatal(err)
			}
		}
	}
	w.eventually("all Services are gone", func() bool {
		drain()
		return !slices.ContainsFunc(slices.Collect(maps.Values(seen.names)), func(n string) bool { return strings.HasPrefix(n, "churn-") })
	})
	w.eventually("pools in the course of deletion are gone, and the others are empty", func() bool {
		pools, err := w.fairway.IPPools().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(pools.Items, func(p v1alpha1.IPPool) bool {
			st := p.Status
			return p.DeletionTimestamp != nil || st.IPv4.Used+st.IPv6.Used+st.Kept+st.Services != 0 || st.ObservedGeneration != p.Generation
		})
	})
	w.pool("last", v1alpha1.IPPoolSpec{Addresses: []string{"192.0.2.0/24"}, Priority: 9})
	w.eventually("pool last is ready", func() bool {
		p, err := w.fairway.IPPools().Get(t.Context(), "last", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(p.Status.Conditions) == 1
	})
	w.service("churn-last")
	w.has("churn-last", "192.0.2.0", "Allocated")
}

// churnPools are what pools of testChurn may have; those of one do not overlap those of the other.
var churnPools = map[string][][]string{
	"churn-a": {{"10.9.0.0/28", "fd09::/124"}, {"10.9.0.0/28", "fd09::/124"}, {"10.9.0.0-10.9.0.9"}, {"10.9.0.5-10.9.0.20", "fd09::2-fd09::6"}, {"10.9.0.4"}},
	"churn-b": {{"10.9.1.0/29"}, {"10.9.1.0-10.9.1.9", "fd09:1::/124"}, {"fd09:1::/124"}},
}

func (w *world) changePool(ctx context.Context, r *rand.Rand) error {
	name := []string{"churn-a", "churn-b"}[r.IntN(2)]
	spec := v1alpha1.IPPoolSpec{Addresses: churnPools[name][r.IntN(len(churnPools[name]))], Priority: int32(r.IntN(2))}
	pools := w.fairway.IPPools()
	switch r.IntN(8) {
	case 0:
		return pools.Delete(ctx, name, metav1.DeleteOptions{})
	case 1, 2, 3:
		patch := fmt.Sprintf(`{"spec":{"addresses":["%s"],"priority":%d}}`, strings.Join(spec.Addresses, `","`), spec.Priority)
		_, err := pools.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	_, err := pools.Create(ctx, &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	return err
}

func (w *world) changeService(ctx context.Context, r *rand.Rand) error {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	name := fmt.Sprint("churn-", r.IntN(40))
	services := w.client.CoreV1().Services("default")
	address := func() string {
		return pick("", "", "", "", "", "", "10.9.0.1", "10.9.0.4", "10.9.1.0", "10.9.0.2,fd09::2", "10.10.10.10")
	}
	port := func() int32 { return int32(80 + r.IntN(3)) }
	key := func() string { return pick("", "", "", "k", "l") }
	annotations := func(k, v string) string { return fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, k, v) }
	var patch string
	switch r.IntN(14) {
	case 0, 1, 2, 10, 11, 12, 13:
		policy := corev1.IPFamilyPolicy(pick("SingleStack", "PreferDualStack"))
		svc := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, IPFamilyPolicy: &policy, AllocateLoadBalancerNodePorts: new(bool),
				Ports: []corev1.ServicePort{{Name: "p", Port: port(), Protocol: corev1.ProtocolTCP}},
			},
		}
		if r.IntN(5) == 0 {
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
		for k, v := range map[string]string{v1alpha1.AnnotationShareKey: key(), v1alpha1.AnnotationAddresses: address()} {
			if v != "" {
				svc.Annotations[k] = v
			}
		}
		_, err := services.Create(ctx, svc, metav1.CreateOptions{})
		return err
	case 3, 4:
		return services.Delete(ctx, name, metav1.DeleteOptions{})
	case 5:
		patch = pick(`{"spec":{"type":"ClusterIP","externalTrafficPolicy":null,"allocateLoadBalancerNodePorts":null}}`,
			`{"spec":{"type":"LoadBalancer","allocateLoadBalancerNodePorts":false}}`)
	case 6:
		patch = annotations(v1alpha1.AnnotationAddresses, address())
	case 7:
		patch = annotations(v1alpha1.AnnotationShareKey, key())
	case 8:
		patch = annotations(v1alpha1.AnnotationPool, pick("", "", "churn-a", "churn-b", "none"))
	case 9:
		patch = pick(fmt.Sprintf(`{"spec":{"ports":[{"name":"p","port":%d,"protocol":%q}]}}`, port(), pick("TCP", "UDP")),
			`{"spec":{"ipFamilyPolicy":"PreferDualStack"}}`, `{"spec":{"ipFamilyPolicy":"SingleStack"}}`)
	}
	_, err := services.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}
