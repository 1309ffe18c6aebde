package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func newAgent(client *fake.Clientset) *Agent {
	return New(client, Facts{Name: "node-1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("fd00::b")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd01::/64")}, Zone: "a", Labels: map[string]string{"disk": "ssd"},
		ServerPort: 10250, Version: "v1", Runtime: "process://1", BootID: "boot", MaxPods: 7}, slog.New(slog.DiscardHandler))
}

func get(t *testing.T, client *fake.Clientset) *v1.Node {
	t.Helper()
	n, err := client.CoreV1().Nodes().Get(t.Context(), "node-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func condition(n *v1.Node, kind v1.NodeConditionType) v1.NodeCondition {
	i := slices.IndexFunc(n.Status.Conditions, func(c v1.NodeCondition) bool { return c.Type == kind })
	if i < 0 {
		return v1.NodeCondition{}
	}
	return n.Status.Conditions[i]
}

func TestRegister(t *testing.T) {
	client := fake.NewClientset()
	if err := newAgent(client).Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := get(t, client)
	for label, want := range map[string]string{v1.LabelHostname: "node-1", v1.LabelTopologyZone: "a", v1.LabelOSStable: "linux", "disk": "ssd"} {
		if n.Labels[label] != want {
			t.Errorf("label %s is %q", label, n.Labels[label])
		}
	}
	if n.Spec.PodCIDR != "10.244.1.0/24" || len(n.Spec.PodCIDRs) != 2 {
		t.Errorf("Pod CIDRs %v", n.Spec.PodCIDRs)
	}
	want := []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: "172.30.0.11"}, {Type: v1.NodeInternalIP, Address: "fd00::b"}, {Type: v1.NodeHostName, Address: "node-1"}}
	if !slices.Equal(n.Status.Addresses, want) {
		t.Errorf("addresses %v", n.Status.Addresses)
	}
	for kind, want := range map[v1.NodeConditionType]v1.ConditionStatus{v1.NodeReady: v1.ConditionTrue, v1.NodeNetworkUnavailable: v1.ConditionFalse, v1.NodeMemoryPressure: v1.ConditionFalse} {
		if c := condition(n, kind); c.Status != want || c.LastTransitionTime.IsZero() {
			t.Errorf("%s is %+v", kind, c)
		}
	}
	s := n.Status
	if s.Capacity.Pods().Value() != 7 || s.Capacity.Cpu().Value() < 1 || s.Allocatable.Memory().Value() < 1<<20 || s.DaemonEndpoints.KubeletEndpoint.Port != 10250 || s.NodeInfo.BootID != "boot" {
		t.Errorf("status %+v", s)
	}
}

// A Node that is there already keeps what others have written.
func TestUpdate(t *testing.T) {
	long := metav1.NewTime(time.Now().Add(-time.Hour).Truncate(time.Second))
	old := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{"mine": "kept", "disk": "hdd"}, Annotations: map[string]string{"fairway.dev/power": "on"}},
		Spec: v1.NodeSpec{Unschedulable: true, Taints: []v1.Taint{{Key: "k", Effect: v1.TaintEffectNoSchedule}}},
		Status: v1.NodeStatus{Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionUnknown, LastTransitionTime: long},
			{Type: v1.NodeDiskPressure, Status: v1.ConditionFalse, LastTransitionTime: long}, {Type: "example.com/Own", Status: v1.ConditionTrue, LastTransitionTime: long}}}}
	client := fake.NewClientset(old)
	if err := newAgent(client).Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := get(t, client)
	if n.Labels["mine"] != "kept" || n.Labels["disk"] != "ssd" || n.Annotations["fairway.dev/power"] != "on" || !n.Spec.Unschedulable || len(n.Spec.Taints) != 1 {
		t.Errorf("metadata %+v, spec %+v", n.ObjectMeta, n.Spec)
	}
	if n.Spec.PodCIDR != "10.244.1.0/24" {
		t.Errorf("Pod CIDR %q", n.Spec.PodCIDR)
	}
	if c := condition(n, v1.NodeReady); c.Status != v1.ConditionTrue || c.LastTransitionTime.Equal(&long) {
		t.Errorf("Ready, which has changed: %+v", c)
	}
	if c := condition(n, v1.NodeDiskPressure); !c.LastTransitionTime.Equal(&long) || c.LastHeartbeatTime.IsZero() {
		t.Errorf("DiskPressure, which has not: %+v", c)
	}
	if c := condition(n, "example.com/Own"); c.Status != v1.ConditionTrue {
		t.Errorf("another's condition: %+v", c)
	}
}

func TestPodCIDRsAreForGood(t *testing.T) {
	client := fake.NewClientset(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: v1.NodeSpec{PodCIDR: "10.9.0.0/24", PodCIDRs: []string{"10.9.0.0/24"}}})
	err := newAgent(client).register(t.Context())
	if err == nil || !strings.Contains(err.Error(), "10.9.0.0/24") || !strings.Contains(err.Error(), "delete the Node") {
		t.Errorf("error %v", err)
	}
}

// The lease is renewed, made anew if somebody deletes it, and after the API was
// away the status is told again.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var away atomic.Bool
		client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
			return away.Load(), nil, errors.New("no API here")
		})
		a := newAgent(client)
		if err := a.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go a.Run(ctx)
		lease := func() *coordinationv1.Lease {
			t.Helper()
			synctest.Wait()
			l, err := client.CoordinationV1().Leases(v1.NamespaceNodeLease).Get(t.Context(), "node-1", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		age := func() time.Duration { t.Helper(); return time.Since(lease().Spec.RenewTime.Time) }
		if l := lease(); *l.Spec.HolderIdentity != "node-1" || *l.Spec.LeaseDurationSeconds != 20 || len(l.OwnerReferences) != 1 {
			t.Errorf("lease %+v", l)
		}
		time.Sleep(time.Minute)
		if age() > leaseRenewal {
			t.Errorf("renewed %v ago", age())
		}
		if err := client.CoordinationV1().Leases(v1.NamespaceNodeLease).Delete(ctx, "node-1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2*leaseRenewal + time.Second)
		if age() > leaseRenewal {
			t.Errorf("a deleted lease was made again %v ago", age())
		}
		synctest.Wait()
		away.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		away.Store(false)
		n := get(t, client)
		for i := range n.Status.Conditions {
			n.Status.Conditions[i].Status = v1.ConditionUnknown
		}
		if _, err := client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(leaseRenewal + time.Second)
		synctest.Wait()
		if c := condition(get(t, client), v1.NodeReady); c.Status != v1.ConditionTrue || age() > leaseRenewal {
			t.Errorf("after the API was away: %+v, lease renewed %v ago", c, age())
		}
		// A Node that somebody deletes comes back with the next status.
		if err := client.CoreV1().Nodes().Delete(ctx, "node-1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(statusPeriod + time.Second)
		synctest.Wait()
		get(t, client)
		cancel()
		synctest.Wait()
	})
}
