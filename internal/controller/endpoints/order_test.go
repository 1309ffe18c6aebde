package endpoints

import (
	"fmt"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The urgent go first, also those that were waiting before they became it.
func TestUrgentGoFirst(t *testing.T) {
	o := newOrder()
	q := newQueue("", o)
	defer q.ShutDown()
	key := func(s string) name { return name{Namespace: "n", Name: s} }
	for i := range 5 {
		q.Add(key(fmt.Sprint(i)))
	}
	for _, s := range []string{"3", "x"} {
		o.mark(key(s))
		q.Add(key(s))
	}
	q.Add(key("1")) // again, not urgent: keeps its place
	var got []string
	for range q.Len() {
		k, _ := q.Get()
		got = append(got, k.Name)
		q.Done(k)
	}
	if want := []string{"3", "x", "0", "1", "2", "4"}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}

// An item that becomes urgent while it is worked on comes back first.
func TestUrgentWhileInWork(t *testing.T) {
	o := newOrder()
	q := newQueue("", o)
	defer q.ShutDown()
	a, b := name{Name: "a"}, name{Name: "b"}
	q.Add(a)
	got, _ := q.Get()
	q.Add(b)
	o.mark(a)
	q.Add(a)
	q.Done(got)
	if next, _ := q.Get(); next != a {
		t.Errorf("next is %v, want %v", next, a)
	}
}

func TestWritten(t *testing.T) {
	w := newWritten()
	k := name{Name: "a"}
	for _, test := range []struct {
		cached string
		last   string
		want   bool
	}{
		{"7", "", false}, {"7", "9", true}, {"9", "9", false}, {"10", "9", false}, {"", "9", true}, {"opaque", "9", false},
	} {
		w.forget(k)
		if test.last != "" {
			w.set(k, test.last)
		}
		if got := w.newer(k, test.cached); got != test.want {
			t.Errorf("written %q, cached %q: newer %v", test.last, test.cached, got)
		}
	}
}

// Only what endpoints depend on makes a Pod's facts differ.
func TestPodFacts(t *testing.T) {
	base := func() *v1.Pod {
		return &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{UID: "1", ResourceVersion: "5"},
			Spec:       v1.PodSpec{NodeName: "n"},
			Status:     v1.PodStatus{Phase: v1.PodRunning, PodIPs: []v1.PodIP{{IP: "10.0.0.1"}}},
		}
	}
	for what, test := range map[string]struct {
		change func(*v1.Pod)
		differ bool
	}{
		"resource version": {func(p *v1.Pod) { p.ResourceVersion = "6" }, false},
		"annotation":       {func(p *v1.Pod) { p.Annotations = map[string]string{"a": "b"} }, false},
		"another condition": {func(p *v1.Pod) {
			p.Status.Conditions = []v1.PodCondition{{Type: v1.ContainersReady, Status: v1.ConditionTrue}}
		}, false},
		"ready": {func(p *v1.Pod) {
			p.Status.Conditions = []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}
		}, true},
		"deleted":     {func(p *v1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} }, true},
		"ended":       {func(p *v1.Pod) { p.Status.Phase = v1.PodFailed }, true},
		"address":     {func(p *v1.Pod) { p.Status.PodIPs[0].IP = "10.0.0.2" }, true},
		"second":      {func(p *v1.Pod) { p.Status.PodIPs = append(p.Status.PodIPs, v1.PodIP{IP: "fd00::1"}) }, true},
		"node":        {func(p *v1.Pod) { p.Spec.NodeName = "m" }, true},
		"host name":   {func(p *v1.Pod) { p.Spec.Hostname = "h" }, true},
		"replacement": {func(p *v1.Pod) { p.UID = "2" }, true},
	} {
		p := base()
		test.change(p)
		if got := factsOf(p) != factsOf(base()); got != test.differ {
			t.Errorf("%s: differ %v, want %v", what, got, test.differ)
		}
	}
}

func TestPace(t *testing.T) {
	p := newPace(time.Millisecond)
	k, now := name{Name: "big"}, time.Now()
	if w := p.wait(k, now); w > 0 {
		t.Errorf("the first sync waits %v", w)
	}
	p.synced(k, 1000, now)
	if w := p.wait(k, now.Add(300*time.Millisecond)); w != 700*time.Millisecond {
		t.Errorf("300 ms after a sync of 1000 pods: %v to wait, want 700ms", w)
	}
	p.synced(k, fewPods, now)
	if w := p.wait(k, now); w > 0 || len(p.next) > 0 {
		t.Errorf("with few pods: %v to wait", w)
	}
}
