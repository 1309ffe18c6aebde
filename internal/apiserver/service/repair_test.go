package service

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/networking"

	"fairway.dev/fairway/internal/apiserver/service/claim"
)

// repairs runs passes of repair and returns the events that they made, without leaving time between: leakAge has passed
// from the second on.
func (c *cluster) repairs(passes int) []string {
	c.t.Helper()
	rec := events.NewFakeRecorder(1000)
	r := c.reg.repair
	r.recorder, r.leakAge = rec, time.Nanosecond
	for range passes {
		if err := r.pass(c.ctx); err != nil {
			c.t.Fatal(err)
		}
	}
	close(rec.Events)
	var out []string
	for e := range rec.Events {
		out = append(out, e)
	}
	r.recorder = nil
	return out
}

func wantEvents(t *testing.T, got []string, want ...string) {
	t.Helper()
	slices.Sort(got)
	for _, w := range want {
		i := slices.IndexFunc(got, func(s string) bool { return strings.Contains(s, w) })
		if i < 0 {
			t.Errorf("no event with %q among %q", w, got)
			continue
		}
		got = slices.Delete(got, i, i+1)
	}
	for _, e := range got {
		t.Errorf("unexpected event %q", e)
	}
}

// TestRepairNothing: where all is well, repair does nothing and says nothing.
func TestRepairNothing(t *testing.T) {
	c := newCluster(t)
	for i, f := range forms {
		c.mustCreate(svc(fmt.Sprintf("s%d", i), f.become))
	}
	wantEvents(t, c.repairs(3))
	c.checkAudit()
	if n := len(c.reg.repair.suspects); n != 0 {
		t.Errorf("%d suspects", n)
	}
}

// TestRepairLeaks: claims left by a server that died between claiming and storing, or between storing and releasing.
func TestRepairLeaks(t *testing.T) {
	c := newCluster(t)
	alloc := c.rest.alloc
	dead := claim.Owner{Namespace: "default", Name: "never-stored", UID: "u1"}
	mustClaim := func(b *claim.Book, id string, o claim.Owner) {
		t.Helper()
		if err := b.Claim(c.ctx, id, o); err != nil {
			t.Fatal(err)
		}
	}
	mustClaim(alloc.addrs.Book, "10.96.9.1", dead)
	mustClaim(alloc.addrs.Book, "fd00:10:96::9", dead)
	mustClaim(alloc.ports.Book, "30009", dead)
	changed := c.mustCreate(svc("changed"))
	mustClaim(alloc.ports.Book, "30010", ownerOf(changed)) // it was a NodePort, and its change was stored
	// A predecessor of the same name
	mustClaim(alloc.ports.Book, "30011", claim.Owner{Namespace: "default", Name: "changed", UID: "old"})

	// Not at once: the write may still come.
	r := c.reg.repair
	r.leakAge = time.Hour
	for range 2 {
		if err := r.pass(c.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(c.audit()); n != 5 {
		t.Fatalf("%d leaks left before their time, want all 5", n)
	}
	got := c.repairs(1)
	wantEvents(t, got,
		"IPAddress: 10.96.9.1 for Service default/never-stored appears to have leaked",
		"IPAddress: fd00:10:96::9 for Service default/never-stored appears to have leaked")
	c.checkAudit()
	c.mustCreate(svc("user", ofType("NodePort"), withIPs("10.96.9.1"), func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30009 }))
	c.checkAudit()
}

// TestRepairKeepsWhatComes: a claim whose Service is stored after repair first saw it alone is no leak; a new claim on the
// same thing starts anew.
func TestRepairKeepsWhatComes(t *testing.T) {
	c := newCluster(t)
	r := c.reg.repair
	r.leakAge = 40 * time.Millisecond
	claimed := make(chan struct{})
	stored := make(chan error)
	hold := make(chan struct{})
	go func() {
		_, err := c.rest.Create(c.ctx, defaulted(svc("slow", withIPs("10.96.1.7"))), func(context.Context, runtime.Object) error {
			close(claimed)
			<-hold
			return nil
		}, &metav1.CreateOptions{})
		stored <- err
	}()
	<-claimed
	if err := r.pass(c.ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(r.suspects); n != 1 {
		t.Fatalf("%d suspects, want 1", n)
	}
	close(hold)
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * r.leakAge)
	if err := r.pass(c.ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(r.suspects); n != 0 {
		t.Errorf("%d suspects, want none", n)
	}
	c.checkAudit()
}

// TestRepairMissing: claims that somebody deleted, or that never were, are made.
func TestRepairMissing(t *testing.T) {
	c := newCluster(t)
	s := c.mustCreate(svc("s", healthCheck(30009), withPolicy(required)))
	for _, ip := range s.Spec.ClusterIPs {
		if _, _, err := c.addresses.Delete(requestContext("ipaddresses", ""), ip, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.rest.alloc.ports.Release(c.ctx, "30009", ownerOf(s)); err != nil {
		t.Fatal(err)
	}
	if n := len(c.audit()); n != 3 {
		t.Fatalf("%d wrong, want 3", n)
	}
	wantEvents(t, c.repairs(2), "ClusterIPNotAllocated Cluster IP [IPv4]: "+s.Spec.ClusterIP+" is not allocated; repairing",
		"ClusterIPNotAllocated Cluster IP [IPv6]", "PortNotAllocated Port 30009 is not allocated; repairing")
	c.checkAudit()
}

// TestRepairTampered: an IPAddress of ours that somebody changed is made right again, without a moment in which it is free.
func TestRepairTampered(t *testing.T) {
	c := newCluster(t)
	s := c.mustCreate(svc("s"))
	info := rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		ip := old.DeepCopyObject().(*networking.IPAddress)
		ip.Labels["ipaddress.kubernetes.io/ip-family"] = "IPv6"
		ip.Labels["mine"] = "too"
		ip.Annotations = nil
		return ip, nil
	})
	ctx := requestContext("ipaddresses", "")
	if _, _, err := c.addresses.Update(ctx, s.Spec.ClusterIP, info, rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	before, _ := c.addresses.Get(ctx, s.Spec.ClusterIP, &metav1.GetOptions{})
	wantEvents(t, c.repairs(2))
	obj, err := c.addresses.Get(ctx, s.Spec.ClusterIP, &metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ip := obj.(*networking.IPAddress)
	if ip.Labels["ipaddress.kubernetes.io/ip-family"] != "IPv4" || ip.Labels["mine"] != "too" || ip.Annotations[claim.AnnotationServiceUID] != string(s.UID) || ip.UID != before.(*networking.IPAddress).UID {
		t.Errorf("%+v", ip.ObjectMeta)
	}
	c.checkAudit()
}

// TestRepairReports: what repair cannot mend it reports, once.
func TestRepairReports(t *testing.T) {
	storage := newStorage(t)
	c := newCluster(t, func(o *clusterOptions) { o.storage = storage })
	a := c.mustCreate(svc("a", ofType("NodePort"), withIPs("10.96.1.1"), func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30001 }))
	store := func(name string, edit func(*core.Service)) {
		t.Helper()
		twin := a.DeepCopy()
		twin.ResourceVersion, twin.Name, twin.UID = "", name, types.UID(name)
		edit(twin)
		key, _ := c.rest.KeyFunc(c.ctx, name)
		if err := c.rest.Store.Storage.Create(c.ctx, key, twin, nil, 0, false); err != nil {
			t.Fatal(err)
		}
	}
	store("twin", func(*core.Service) {})
	store("stray", func(s *core.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.1.1.1", []string{"10.1.1.1"}
		s.Spec.Ports[0].NodePort = 8080
	})
	wantEvents(t, c.repairs(3),
		"ClusterIPAlreadyAllocated Cluster IP [IPv4]: 10.96.1.1 was assigned to multiple services; please recreate service",
		"PortAlreadyAllocated Port 30001 was assigned to multiple services; please recreate service",
		"ClusterIPOutOfRange Cluster IP [IPv4]: 10.1.1.1 is not within any configured range",
		"PortOutOfRange Port 8080 is not within any configured range",
		"ClusterIPNotAllocated Cluster IP [IPv4]: 10.1.1.1", "PortNotAllocated Port 8080")
	// The one who has no claim goes: the claims of the other stay.
	if err := c.delete("twin"); err != nil {
		t.Fatal(err)
	}
	c.checkAudit()
	wantEvents(t, c.repairs(2))
}

// TestRepairHandsOver: a leaked claim on something that another Service holds goes to that one.
func TestRepairHandsOver(t *testing.T) {
	c := newCluster(t)
	s := c.mustCreate(svc("s", withIPs("10.96.1.1")))
	if err := c.rest.alloc.addrs.Release(c.ctx, "10.96.1.1", ownerOf(s)); err != nil {
		t.Fatal(err)
	}
	if err := c.rest.alloc.addrs.Claim(c.ctx, "10.96.1.1", claim.Owner{Namespace: "x", Name: "dead", UID: "d"}); err != nil {
		t.Fatal(err)
	}
	c.repairs(2)
	c.checkAudit()
}

// TestRepairSole: a server that knows to be alone releases at once what its predecessor left, but not what itself is about to use.
func TestRepairSole(t *testing.T) {
	store := newStorage(t)
	c := newCluster(t, func(o *clusterOptions) { o.storage = store })
	c.reg.repair.sole = true
	mine := claim.Owner{Namespace: "default", Name: "coming", UID: "u"}
	if err := c.rest.alloc.ports.Claim(c.ctx, "30001", mine); err != nil {
		t.Fatal(err)
	}
	left := &core.RangeAllocation{ObjectMeta: metav1.ObjectMeta{Name: "30002", UID: "x", Annotations: map[string]string{
		claim.AnnotationServer: "the one before", claim.AnnotationServiceUID: "u", "fairway.dev/service": "default/dead"}}}
	raw, destroy, err := rawPorts(store)
	if err != nil {
		t.Fatal(err)
	}
	defer destroy()
	if err := raw.Create(c.ctx, "/ranges/fairway-nodeports/30002", left, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.reg.repair.pass(c.ctx); err != nil {
		t.Fatal(err)
	}
	got := c.audit()
	if len(got) != 1 || !strings.HasPrefix(got[0], "30001 ") {
		t.Errorf("left: %q, want 30001 alone", got)
	}
}

// TestRun repairs while it runs, soon after a leak's time has come, and stops.
func TestRun(t *testing.T) {
	c := newCluster(t, func(o *clusterOptions) { o.leakAge = 200 * time.Millisecond })
	if err := c.rest.alloc.ports.Claim(c.ctx, "30000", claim.Owner{Namespace: "x", Name: "dead", UID: "d"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.reg.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	for deadline := time.Now().Add(20 * time.Second); len(c.audit()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still wrong: %v", c.audit())
		}
	}
}
