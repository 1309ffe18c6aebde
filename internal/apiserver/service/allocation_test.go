package service

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/networking"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/utils/ptr"
)

func single4(cidr string) func(*clusterOptions) {
	return func(o *clusterOptions) { o.cidrs = []netip.Prefix{netip.MustParsePrefix(cidr)} }
}

// TestRangeFull: a range that runs full says so, and recovers when something is freed or added.
func TestRangeFull(t *testing.T) {
	c := newCluster(t, single4("10.96.0.0/28"))
	var last *core.Service
	for i := range 14 {
		last = c.mustCreate(svc(fmt.Sprintf("s%d", i)))
	}
	_, err := c.create(svc("more"))
	if err == nil || !strings.Contains(err.Error(), "failed to allocate a serviceIP for Service \"more\": range is full: every address of 10.96.0.0/28 is in use; delete a Service or add a ServiceCIDR") {
		t.Fatalf("error %v", err)
	}
	if _, err := c.create(svc("more"), metav1.DryRunAll); err == nil {
		t.Error("a dry run succeeds where the real one fails")
	}
	if err := c.delete("s3"); err != nil {
		t.Fatal(err)
	}
	c.mustCreate(svc("again"))
	if err := c.addCIDR("more", "10.97.0.0/28"); err != nil {
		t.Fatal(err)
	}
	if got := c.mustCreate(svc("more")); !strings.HasPrefix(got.Spec.ClusterIP, "10.97.0.") {
		t.Errorf("address %s, want one of the added CIDR", got.Spec.ClusterIP)
	}
	if err := c.delete(last.Name); err != nil {
		t.Fatal(err)
	}
	c.checkAudit()
}

func TestNodePortsFull(t *testing.T) {
	c := newCluster(t, func(o *clusterOptions) { o.ports = "30000-30019" })
	np := ofType(corev1.ServiceTypeNodePort)
	for i := range 20 {
		c.mustCreate(svc(fmt.Sprintf("s%d", i), np))
	}
	_, err := c.create(svc("more", np))
	if err == nil || !strings.Contains(err.Error(), "failed to allocate a nodePort for Service \"more\": range is full: every port of 30000-30019 is in use") {
		t.Fatalf("error %v", err)
	}
	c.checkAudit() // the address that "more" had claimed by then is free again
	if _, err := c.edit("s3", ofType(corev1.ServiceTypeClusterIP)); err != nil {
		t.Fatal(err)
	}
	c.mustCreate(svc("more", np))
	c.checkAudit()
}

// TestLowerBand: what is handed out comes from the lower band only when there is nothing else.
func TestLowerBand(t *testing.T) {
	c := newCluster(t, single4("10.96.0.0/26"), func(o *clusterOptions) { o.ports = "30000-30063" })
	inBand := func(s *core.Service) (addr, port bool) {
		a := netip.MustParseAddr(s.Spec.ClusterIP)
		return a.As4()[3] <= 16, s.Spec.Ports[0].NodePort < 30016
	}
	for i := range 62 {
		s := c.mustCreate(svc(fmt.Sprintf("s%d", i), ofType(corev1.ServiceTypeNodePort)))
		addr, port := inBand(s)
		if addr != (i >= 62-16) || port != (i >= 64-16) {
			t.Errorf("Service %d has %s and %d", i, s.Spec.ClusterIP, s.Spec.Ports[0].NodePort)
		}
	}
	c.checkAudit()
}

// TestServiceCIDRs: addresses come from those ServiceCIDRs that are ready at the time.
func TestServiceCIDRs(t *testing.T) {
	c := newCluster(t, func(o *clusterOptions) { o.noDefault = true })
	_, err := c.create(svc("s"))
	if err == nil || !strings.Contains(err.Error(), "no ServiceCIDR is ready for IPv4") {
		t.Fatalf("without a ServiceCIDR: %v", err)
	}
	if _, err := c.create(svc("s", withIPs("10.96.1.1"))); err == nil || !strings.Contains(err.Error(), "no ServiceCIDR is ready") {
		t.Fatalf("without a ServiceCIDR: %v", err)
	}
	add := func(name string, cidrs ...string) {
		t.Helper()
		if err := c.addCIDR(name, cidrs...); err != nil {
			t.Fatal(err)
		}
	}
	add("a", "10.96.0.0/24")
	add("b", "10.97.0.0/24", "fd00::/120")
	from := func() map[string]int {
		count := map[string]int{}
		for i := range 60 {
			s := c.mustCreate(svc(fmt.Sprintf("s%d", i)))
			count[strings.Join(strings.Split(s.Spec.ClusterIP, ".")[:2], ".")]++
		}
		for i := range 60 {
			if err := c.delete(fmt.Sprintf("s%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		return count
	}
	if got := from(); got["10.96"] == 0 || got["10.97"] == 0 {
		t.Errorf("addresses come from %v, want both", got)
	}
	setReady := func(name string, status metav1.ConditionStatus) {
		t.Helper()
		info := rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			sc := old.DeepCopyObject().(*networking.ServiceCIDR)
			sc.Status.Conditions = []metav1.Condition{{Type: "Ready", Status: status, Reason: "Test", LastTransitionTime: metav1.Now()}}
			return sc, nil
		})
		if _, _, err := c.cidrStatus.Update(requestContext("servicecidrs", ""), name, info, rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	setReady("a", metav1.ConditionFalse)
	if got := from(); got["10.96"] != 0 {
		t.Errorf("addresses come from %v, want none of a", got)
	}
	if _, err := c.create(svc("s", withIPs("10.96.0.9"))); err == nil {
		t.Error("an address of a CIDR that is not ready was given out")
	}
	setReady("a", metav1.ConditionTrue)
	c.mustCreate(svc("s", withIPs("10.96.0.9")))
	c.removeCIDR("b")
	if got := from(); got["10.97"] != 0 {
		t.Errorf("addresses come from %v, want none of b", got)
	}
	if _, err := c.create(svc("six", withPolicy(required))); err == nil || !strings.Contains(err.Error(), "no ServiceCIDR is ready for IPv6") {
		t.Errorf("error %v", err)
	}
	c.checkAudit()
	c.removeCIDR("a") // its Services stay, and can be changed and deleted
	if _, err := c.edit("s", ofType(corev1.ServiceTypeNodePort)); err != nil {
		t.Error(err)
	}
	if err := c.delete("s"); err != nil {
		t.Error(err)
	}
	c.checkAudit()
}

// TestIPAddressObjects: claims on addresses are valid IPAddress objects that refer to their Service.
func TestIPAddressObjects(t *testing.T) {
	c := newCluster(t)
	s := c.mustCreate(svc("s", withPolicy(required)))
	for _, ip := range s.Spec.ClusterIPs {
		obj, err := c.addresses.Get(requestContext("ipaddresses", ""), ip, &metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		addr := obj.(*networking.IPAddress)
		if errs := networkingvalidation.ValidateIPAddress(addr); len(errs) > 0 {
			t.Errorf("%s: %v", ip, errs)
		}
		if ref := addr.Spec.ParentRef; ref == nil || ref.Resource != "services" || ref.Namespace != "default" || ref.Name != "s" || addr.UID == "" || addr.CreationTimestamp.IsZero() {
			t.Errorf("%s: %+v", ip, addr)
		}
		want := "IPv4"
		if strings.Contains(ip, ":") {
			want = "IPv6"
		}
		if addr.Labels["ipaddress.kubernetes.io/ip-family"] != want || addr.Labels["ipaddress.kubernetes.io/managed-by"] != "ipallocator.k8s.io" {
			t.Errorf("labels %v", addr.Labels)
		}
	}
}

// TestForeignIPAddress: an address that something else than a Service has is not handed out, nor taken away.
func TestForeignIPAddress(t *testing.T) {
	c := newCluster(t, single4("10.96.0.0/30"))
	c.reg.repair.leakAge = 0
	foreign := &networking.IPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: "10.96.0.1"},
		Spec:       networking.IPAddressSpec{ParentRef: &networking.ParentReference{Group: "gateway.example.com", Resource: "gateways", Namespace: "x", Name: "g"}},
	}
	if _, err := c.addresses.Create(requestContext("ipaddresses", ""), foreign, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.create(svc("s", withIPs("10.96.0.1"))); err == nil {
		t.Error("somebody else's address was given out")
	}
	if s := c.mustCreate(svc("s")); s.Spec.ClusterIP != "10.96.0.2" {
		t.Errorf("got %s", s.Spec.ClusterIP)
	}
	for range 3 {
		if err := c.reg.repair.pass(c.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.addresses.Get(requestContext("ipaddresses", ""), "10.96.0.1", &metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// TestDryRun: a dry run answers as if, and claims and releases nothing.
func TestDryRun(t *testing.T) {
	c := newCluster(t)
	got, err := c.create(svc("s", healthCheck(0), withPolicy(required)), metav1.DryRunAll)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Spec.ClusterIPs) != 2 || got.Spec.Ports[0].NodePort == 0 || got.Spec.HealthCheckNodePort == 0 {
		t.Errorf("dry run returns %+v", got.Spec)
	}
	if n := len(c.services()); n != 0 {
		t.Errorf("%d Services", n)
	}
	c.checkAudit()
	had := c.mustCreate(svc("s", healthCheck(30009)))
	for _, to := range forms {
		if to.name == "headless" || to.name == "manual" {
			continue
		}
		if _, err := c.put(svc("s", to.become), metav1.DryRunAll); err != nil {
			t.Errorf("%s: %v", to.name, err)
		}
		c.checkAudit()
	}
	if _, err := c.create(svc("t", healthCheck(30009)), metav1.DryRunAll); err == nil {
		t.Error("dry run gives a port in use")
	}
	if _, err := c.create(svc("t", withIPs(had.Spec.ClusterIP)), metav1.DryRunAll); err == nil {
		t.Error("dry run gives an address in use")
	}
	if _, _, err := c.rest.Delete(c.ctx, "s", rest.ValidateAllObjectFunc, &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Fatal(err)
	}
	c.checkAudit()
}

// TestRollback: what was claimed for a Service that is then not stored is released at once.
func TestRollback(t *testing.T) {
	c := newCluster(t)
	dual := func(s *corev1.Service) { healthCheck(0)(s); withPolicy(required)(s) }
	c.mustCreate(svc("taken", withIPs("10.96.5.5")))
	denied := apierrors.NewForbidden(core.Resource("services"), "s", errors.New("quota"))
	deny := func(context.Context, runtime.Object) error { return denied }
	denyUpdate := func(context.Context, runtime.Object, runtime.Object) error { return denied }

	t.Run("exists", func(t *testing.T) {
		if _, err := c.create(svc("taken", dual)); !apierrors.IsAlreadyExists(err) {
			t.Errorf("error %v", err)
		}
		c.checkAudit()
	})
	t.Run("admission", func(t *testing.T) {
		if _, err := c.rest.Create(c.ctx, defaulted(svc("s", dual)), deny, &metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("error %v", err)
		}
		c.checkAudit()
	})
	t.Run("one of several is taken", func(t *testing.T) {
		c.mustCreate(svc("port", ofType("NodePort"), func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30077 }))
		_, err := c.create(svc("s", ofType("NodePort"), withPolicy(required), ports(
			corev1.ServicePort{Name: "a", Port: 1}, corev1.ServicePort{Name: "b", Port: 2, NodePort: 30077})))
		if !apierrors.IsInvalid(err) {
			t.Errorf("error %v", err)
		}
		c.checkAudit()
	})
	t.Run("update refused by admission", func(t *testing.T) {
		before := c.mustCreate(svc("u"))
		_, _, err := c.rest.Update(c.ctx, "u", rest.DefaultUpdatedObjectInfo(defaulted(svc("u", dual))), rest.ValidateAllObjectFunc, denyUpdate, false, &metav1.UpdateOptions{})
		if !apierrors.IsForbidden(err) {
			t.Errorf("error %v", err)
		}
		c.checkAudit()
		after, _ := c.get("u")
		if after.ResourceVersion != before.ResourceVersion {
			t.Error("the Service changed")
		}
	})
	t.Run("update that would release, refused", func(t *testing.T) {
		before := c.mustCreate(svc("v", dual))
		_, _, err := c.rest.Update(c.ctx, "v", rest.DefaultUpdatedObjectInfo(defaulted(svc("v", ofType("ExternalName")))), rest.ValidateAllObjectFunc, denyUpdate, false, &metav1.UpdateOptions{})
		if !apierrors.IsForbidden(err) {
			t.Errorf("error %v", err)
		}
		c.checkAudit()
		if _, err := c.create(svc("w", withIPs(before.Spec.ClusterIP))); err == nil {
			t.Error("its address was released")
		}
	})
	t.Run("stale update", func(t *testing.T) {
		stale := external(c.mustCreate(svc("x")))
		if _, err := c.edit("x", func(s *corev1.Service) { s.Labels = map[string]string{"a": "b"} }); err != nil {
			t.Fatal(err)
		}
		dual(stale)
		stale.Spec.IPFamilies = nil
		if _, err := c.put(stale); !apierrors.IsConflict(err) {
			t.Errorf("error %v", err)
		}
		c.checkAudit()
	})
}

// TestPutCreates: an update of a Service that is not there makes it, as upstream's API does.
func TestPutCreates(t *testing.T) {
	c := newCluster(t)
	got, err := c.put(svc("s", healthCheck(0)))
	if err != nil {
		t.Fatal(err)
	}
	checkForm(t, &core.Service{}, got, forms[4])
	c.checkAudit()
	c.checkGone("s")
}

// someNames gives the same name twice.
type someNames struct{ n int }

func (g *someNames) GenerateName(base string) string {
	g.n++
	return fmt.Sprint(base, g.n/2)
}

// TestGenerateName: generated names collide, and what was claimed for the name that was not used is not left behind.
func TestGenerateName(t *testing.T) {
	c := newCluster(t)
	s := newStrategy
	s.NameGenerator = &someNames{}
	c.rest.CreateStrategy = s
	for range 10 {
		c.mustCreate(svc("", ofType("NodePort"), func(s *corev1.Service) { s.GenerateName = "s-" }))
	}
	if n := len(c.services()); n != 10 {
		t.Errorf("%d Services", n)
	}
	c.checkAudit()
}

// TestFinalizers: what a Service holds is released when it is really gone, through whichever resource its last
// finalizer is removed.
func TestFinalizers(t *testing.T) {
	for _, through := range []string{"services", "services/status"} {
		t.Run(through, func(t *testing.T) {
			c := newCluster(t)
			s := c.mustCreate(svc("s", ofType("NodePort"), func(s *corev1.Service) { s.Finalizers = []string{"example.com/f"} }))
			if err := c.delete("s"); err != nil {
				t.Fatal(err)
			}
			c.checkAudit()
			if _, err := c.create(svc("t", withIPs(s.Spec.ClusterIP))); err == nil {
				t.Fatal("the address of a Service that is being deleted was given out")
			}
			info := rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
				svc := old.DeepCopyObject().(*core.Service)
				svc.Finalizers = nil
				svc.Spec.Ports = append(svc.Spec.Ports, core.ServicePort{Name: "more", Port: 81, Protocol: "TCP", TargetPort: svc.Spec.Ports[0].TargetPort})
				svc.Spec.Ports[0].Name = "first"
				return svc, nil
			})
			update := c.rest.Update
			if through == "services/status" {
				update = c.reg.status.Update
			}
			if _, _, err := update(c.ctx, "s", info, rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.get("s"); !apierrors.IsNotFound(err) {
				t.Errorf("error %v, want not found", err)
			}
			c.checkAudit()
			c.mustCreate(svc("t", withIPs(s.Spec.ClusterIP)))
		})
	}
}

// TestLateRelease: releasing what a Service held, once more and late, takes nothing from its successor.
func TestLateRelease(t *testing.T) {
	c := newCluster(t)
	same := func(s *corev1.Service) { healthCheck(30009)(s); withIPs("10.96.3.3")(s) }
	first := c.mustCreate(svc("s", same))
	if err := c.delete("s"); err != nil {
		t.Fatal(err)
	}
	c.mustCreate(svc("s", same))
	c.rest.afterDelete(first, &metav1.DeleteOptions{})
	c.checkAudit()
}

// TestDeleteCollection releases all.
func TestDeleteCollection(t *testing.T) {
	c := newCluster(t)
	for i := range 20 {
		c.mustCreate(svc(fmt.Sprintf("s%d", i), ofType("LoadBalancer")))
	}
	if _, err := c.rest.DeleteCollection(c.ctx, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(c.services()); n != 0 {
		t.Errorf("%d Services left", n)
	}
	c.checkAudit()
}

// TestTwoServers: two servers on one etcd, each busy with the same narrow ranges, never give the same thing twice, and
// between them give all of it.
func TestTwoServers(t *testing.T) {
	store := newStorage(t)
	narrow := func(o *clusterOptions) {
		o.storage, o.ports = store, "30000-30063"
		o.cidrs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/26")}
	}
	servers := []*cluster{newCluster(t, narrow), newCluster(t, narrow)}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			c := servers[n%2]
			for i := range 10 {
				_, err := c.create(svc(fmt.Sprintf("s%d-%d", n, i), ofType("NodePort")))
				if err != nil && !strings.Contains(err.Error(), "range is full") {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	servers[0].checkAudit()
	if n := len(servers[1].services()); n != 62 {
		t.Errorf("%d Services, want one for each of 62 addresses", n)
	}
}

// TestConcurrentUpdates: many writers of one Service; tries that come too late use what they claimed in the next one.
func TestConcurrentUpdates(t *testing.T) {
	store := newStorage(t)
	servers := []*cluster{newCluster(t, func(o *clusterOptions) { o.storage = store }), newCluster(t, func(o *clusterOptions) { o.storage = store })}
	servers[0].mustCreate(svc("s"))
	var wg sync.WaitGroup
	for n := range 6 {
		wg.Go(func() {
			for i := range 15 {
				f := forms[(n+i)%6]
				_, err := servers[n%2].edit("s", func(s *corev1.Service) {
					f.become(s)
					s.Spec.IPFamilyPolicy = nil
					if f.ip && i%2 == 0 {
						s.Spec.IPFamilyPolicy = ptr.To(prefer)
					}
					s.Labels = map[string]string{"n": fmt.Sprintf("%d-%d", n, i)}
				})
				if err != nil && !apierrors.IsInvalid(err) && !apierrors.IsConflict(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	servers[0].checkAudit()
	servers[0].checkGone("s")
}

// TestRetry: somebody else changes the Service between two tries of an update. The second try uses what the first
// claimed, asked for or not, and what it does not need any more is released.
func TestRetry(t *testing.T) {
	for name, tt := range map[string]struct {
		mine, theirs func(*corev1.Service)
		want         form
	}{
		"asked for": {func(s *corev1.Service) {
			healthCheck(30055)(s)
			s.Spec.Ports[0].NodePort = 30056
			s.Spec.IPFamilyPolicy = ptr.To(prefer)
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP, "fd00:10:96::55"}
		}, func(s *corev1.Service) { s.Labels = map[string]string{"a": "b"} }, forms[4]},
		"any":              {func(s *corev1.Service) { healthCheck(0)(s); s.Spec.IPFamilyPolicy = ptr.To(prefer) }, func(s *corev1.Service) { s.Labels = map[string]string{"a": "b"} }, forms[4]},
		"got by the other": {ofType("NodePort"), ofType("LoadBalancer"), forms[1]},
		"dropped by mine":  {ofType("ExternalName"), ofType("NodePort"), forms[5]},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			before := c.mustCreate(svc("s"))
			tries := 0
			info := rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
				s := external(old.(*core.Service).DeepCopy())
				tt.mine(s)
				return defaulted(s), nil
			})
			between := func(context.Context, runtime.Object, runtime.Object) error {
				if tries++; tries == 1 {
					if _, err := c.edit("s", tt.theirs); err != nil {
						t.Error(err)
					}
				}
				return nil
			}
			obj, _, err := c.rest.Update(c.ctx, "s", info, rest.ValidateAllObjectFunc, between, false, &metav1.UpdateOptions{})
			if err != nil || tries != 2 {
				t.Fatalf("%d tries: %v", tries, err)
			}
			checkForm(t, before, obj.(*core.Service), tt.want)
			c.checkAudit()
		})
	}
}

// TestOldObjects: Services written by somebody who knew no clusterIPs, families or policies are shown with them, and can be changed.
func TestOldObjects(t *testing.T) {
	c := newCluster(t)
	for _, tt := range []struct {
		name string
		svc  *corev1.Service
		want string
	}{
		{"ClusterIP", svc("a", func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.2.2" }), "4 SingleStack"},
		{"headless", svc("b", headless), "4 SingleStack"},
		{"manual", svc("c", headless, noSelector), "46 RequireDualStack"},
		{"ExternalName", svc("d", ofType("ExternalName")), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			obj := defaulted(tt.svc)
			obj.Spec.ClusterIPs = nil
			obj.UID = "u-" + obj.UID
			key, _ := c.rest.KeyFunc(c.ctx, obj.Name)
			if err := c.rest.Store.Storage.Create(c.ctx, key, obj, nil, 0, false); err != nil {
				t.Fatal(err)
			}
			got, err := c.get(obj.Name)
			if err != nil {
				t.Fatal(err)
			}
			checkFamilies(t, got, tt.want)
			if i := slices.IndexFunc(c.services(), func(s core.Service) bool { return s.Name == obj.Name }); familiesString(&c.services()[i]) != tt.want {
				t.Errorf("listed with %q", familiesString(&c.services()[i]))
			}
			got, err = c.edit(obj.Name, func(s *corev1.Service) { s.Labels = map[string]string{"a": "b"} })
			if err != nil {
				t.Fatal(err)
			}
			checkFamilies(t, got, tt.want)
		})
	}
	if err := c.reg.repair.pass(c.ctx); err != nil {
		t.Fatal(err)
	}
	c.checkAudit()
}

// TestAroundTheRegistry: the generic store's own Create, without a ledger, is refused rather than unsafe.
func TestAroundTheRegistry(t *testing.T) {
	c := newCluster(t)
	if _, err := c.rest.Store.Create(c.ctx, defaulted(svc("s")), rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); !apierrors.IsInternalError(err) {
		t.Errorf("error %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	opts, err := restOptions(newStorage(t), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		cidrs string
		want  string
	}{
		{"", "no service CIDR"},
		{"10.0.0.0/16 10.1.0.0/16", "one prefix, or one of each family"},
		{"10.0.0.0/16 fd00::/112 fd01::/112", "one prefix, or one of each family"},
	} {
		var cfg Config
		cfg.RESTOptions = opts
		for _, s := range strings.Fields(tt.cidrs) {
			cfg.ServiceCIDRs = append(cfg.ServiceCIDRs, netip.MustParsePrefix(s))
		}
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want one with %q", tt.cidrs, err, tt.want)
		}
	}
	if _, err := New(Config{RESTOptions: opts, ServiceCIDRs: []netip.Prefix{v4CIDR}}); err == nil || !strings.Contains(err.Error(), "node port range") {
		t.Errorf("without node ports: %v", err)
	}
}

// lossy is a storage that does not say how a write went, having done it or not.
type lossy struct {
	storage.Interface
	does bool
	err  error
}

func (l *lossy) Create(ctx context.Context, key string, obj, out runtime.Object, ttl uint64) error {
	if l.does {
		if err := l.Interface.Create(ctx, key, obj, out, ttl); err != nil {
			return err
		}
	}
	return l.err
}

func (l *lossy) GuaranteedUpdate(ctx context.Context, key string, dest runtime.Object, ignoreNotFound bool, pre *storage.Preconditions, update storage.UpdateFunc, cached runtime.Object) error {
	try := func(in runtime.Object, meta storage.ResponseMeta) (runtime.Object, *uint64, error) {
		out, ttl, err := update(in, meta)
		if err == nil && !l.does {
			err = l.err
		}
		return out, ttl, err
	}
	if err := l.Interface.GuaranteedUpdate(ctx, key, dest, ignoreNotFound, pre, try, cached); err != nil {
		return err
	}
	return l.err
}

// TestUncertain: when it is not known whether a Service was stored, nothing is released; what turns out to be too much,
// repair releases.
func TestUncertain(t *testing.T) {
	for name, err := range map[string]error{
		"deadline":    context.DeadlineExceeded,
		"cancelled":   context.Canceled,
		"unreachable": storage.NewUnreachableError("k", 0),
		"timeout":     storage.NewTimeoutError("k", "slow"),
		"etcd":        errors.New("etcdserver: leader changed"),
	} {
		for _, does := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, stored: %v", name, does), func(t *testing.T) {
				c := newCluster(t)
				c.mustCreate(svc("old", ofType("NodePort")))
				real := c.rest.Store.Storage.Storage
				c.rest.Store.Storage.Storage = &lossy{real, does, err}
				if _, err := c.create(svc("new", healthCheck(0), withPolicy(required))); err == nil {
					t.Fatal("no error")
				}
				_, err := c.edit("old", func(s *corev1.Service) {
					healthCheck(0)(s)
					s.Spec.IPFamilyPolicy = ptr.To(required)
					s.Spec.Ports[0].NodePort = 30099
				})
				if err == nil {
					t.Fatal("no error")
				}
				c.rest.Store.Storage.Storage = real
				for _, w := range c.audit() { // too many claims there may be, too few never
					if !strings.Contains(w, "who does not hold it") {
						t.Error(w)
					}
				}
				if n := len(c.services()); (n == 2) != does {
					t.Errorf("%d Services", n)
				}
				c.repairs(2)
				c.checkAudit()
			})
		}
	}
}
