package podgc

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDoomed(t *testing.T) {
	start := time.Now()
	pod := func(name, node string, phase v1.PodPhase, deleted bool) *v1.Pod {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PodSpec{NodeName: node}, Status: v1.PodStatus{Phase: phase}}
		if deleted {
			p.DeletionTimestamp = &metav1.Time{Time: start}
		}
		return p
	}
	node := func(ready v1.ConditionStatus, taints ...string) *v1.Node {
		n := &v1.Node{Status: v1.NodeStatus{Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Status: ready}}}}
		for _, key := range taints {
			n.Spec.Taints = append(n.Spec.Taints, v1.Taint{Key: key})
		}
		return n
	}
	nodes := map[string]*v1.Node{
		"up":   node(v1.ConditionTrue),
		"down": node(v1.ConditionUnknown, v1.TaintNodeUnreachable),
		"out":  node(v1.ConditionUnknown, v1.TaintNodeOutOfService),
		"back": node(v1.ConditionTrue, v1.TaintNodeOutOfService),
	}
	pods := []*v1.Pod{
		pod("waiting", "", v1.PodPending, false),
		pod("never-placed", "", v1.PodPending, true),
		pod("running", "up", v1.PodRunning, false),
		pod("ending", "up", v1.PodRunning, true),
		pod("on-down", "down", v1.PodRunning, true),
		pod("on-out", "out", v1.PodRunning, true),
		pod("on-out-not-deleted", "out", v1.PodRunning, false),
		pod("on-back", "back", v1.PodRunning, true),
		pod("orphan", "gone", v1.PodRunning, false),
	}
	for i := range 5 {
		p := pod(fmt.Sprintf("ended-%d", i), "up", v1.PodSucceeded, false)
		p.CreationTimestamp = metav1.NewTime(start.Add(time.Duration(-i) * time.Hour)) // the higher, the older
		pods = append(pods, p)
	}
	c := &Collector{keep: 3, gone: map[string]time.Time{}}
	for _, test := range []struct {
		after time.Duration
		want  string
	}{
		{0, "ended-3 ended-4 never-placed on-out"},
		{missing - time.Second, "ended-3 ended-4 never-placed on-out"},
		{missing, "ended-3 ended-4 never-placed on-out orphan"},
	} {
		now := start.Add(test.after)
		c.note(pods, nodes, now)
		var got []string
		for _, d := range c.doomed(pods, nodes, now) {
			got = append(got, d.pod.Name)
			if (d.node != "") != (d.pod.Name == "orphan") {
				t.Errorf("%s: node %q", d.pod.Name, d.node)
			}
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != test.want {
			t.Errorf("after %v: %s, want %s", test.after, s, test.want)
		}
	}
	// A node that comes back is forgotten.
	nodes["gone"] = node(v1.ConditionTrue)
	c.note(pods, nodes, start.Add(missing))
	if len(c.gone) > 0 {
		t.Errorf("still counted as gone: %v", c.gone)
	}
}
