package endpoints

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

var (
	namespaces = []string{"a", "b"}
	someLabels = rapid.MapOfN(rapid.SampledFrom([]string{"app", "tier", "part-of"}), rapid.SampledFrom([]string{"x", "y", ""}), 0, 3)
)

func podNamed(key name, labels map[string]string, node string) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: labels}, Spec: v1.PodSpec{NodeName: node}}
}

// Whatever is set and deleted, the indexes answer as a scan of everything
// would.
func TestIndexesAnswerAsAScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		services, pods := newServiceIndex(), newPodIndex()
		selectors, labels, nodes := map[name]map[string]string{}, map[name]map[string]string{}, map[name]string{}
		key := rapid.Custom(func(t *rapid.T) name {
			return name{Namespace: rapid.SampledFrom(namespaces).Draw(t, "namespace"), Name: fmt.Sprint(rapid.IntRange(0, 4).Draw(t, "name"))}
		})
		t.Repeat(map[string]func(*rapid.T){
			"service": func(t *rapid.T) {
				k, s := key.Draw(t, "key"), someLabels.Draw(t, "selector")
				services.set(k, s)
				selectors[k] = s
			},
			"no service": func(t *rapid.T) {
				k := key.Draw(t, "key")
				services.delete(k)
				delete(selectors, k)
			},
			"pod": func(t *rapid.T) {
				k, l, n := key.Draw(t, "key"), someLabels.Draw(t, "labels"), rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "node")
				pods.set(podNamed(k, l, n))
				labels[k], nodes[k] = l, n
			},
			"no pod": func(t *rapid.T) {
				k := key.Draw(t, "key")
				pods.delete(k)
				delete(labels, k)
				delete(nodes, k)
			},
			"": func(t *rapid.T) {
				for pod, l := range labels {
					got := map[name]struct{}{}
					services.selecting(pod.Namespace, l, got)
					want := map[name]struct{}{}
					for service, s := range selectors {
						if service.Namespace == pod.Namespace && selects(s, l) {
							want[service] = struct{}{}
						}
					}
					if !maps.Equal(got, want) {
						t.Fatalf("services selecting %v %v: %v, want %v", pod, l, got, want)
					}
				}
				for service, s := range selectors {
					got := pods.selected(service.Namespace, s)
					var want []name
					for pod, l := range labels {
						if pod.Namespace == service.Namespace && selects(s, l) {
							want = append(want, pod)
						}
					}
					if !sameNames(got, want) {
						t.Fatalf("pods selected by %v %v: %v, want %v", service, s, got, want)
					}
				}
				for _, node := range []string{"n1", "n2"} {
					n := 0
					pods.labelsOn(node, func(string, map[string]string) { n++ })
					want := 0
					for _, on := range nodes {
						if on == node {
							want++
						}
					}
					if n != want {
						t.Fatalf("%d pods on %s, want %d", n, node, want)
					}
				}
				if len(selectors) == 0 && len(services.anchored)+len(services.services) > 0 {
					t.Fatalf("remains of services: %v", services.anchored)
				}
				if len(labels) == 0 && len(pods.byPair)+len(pods.byNode)+len(pods.pods) > 0 {
					t.Fatalf("remains of pods: %v %v", pods.byPair, pods.byNode)
				}
			},
		})
	})
}

func sameNames(a, b []name) bool {
	byString := func(a, b name) int { return compareStrings(a.String(), b.String()) }
	slices.SortFunc(a, byString)
	slices.SortFunc(b, byString)
	return slices.Equal(a, b)
}

func compareStrings(a, b string) int {
	if a < b {
		return -1
	} else if a > b {
		return 1
	}
	return 0
}

// A label that all Services share does not make the look-up a scan: hardly any
// Service is filed under it.
func TestSharedLabelGathersNoServices(t *testing.T) {
	x := newServiceIndex()
	for i := range 1000 {
		x.set(name{Namespace: "shop", Name: fmt.Sprint(i)}, map[string]string{"part-of": "shop", "app": fmt.Sprint(i)})
	}
	if n := len(x.anchored[pair{"shop", "part-of", "shop"}]); n > 1 {
		t.Errorf("%d services are filed under the label they all share", n)
	}
}

// BenchmarkPodChange is the cost of finding what one Pod's change touches.
func BenchmarkPodChange(b *testing.B) {
	for _, n := range []int{10, 5000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			x := newServiceIndex()
			for i := range n {
				x.set(name{Namespace: "shop", Name: fmt.Sprint(i)}, map[string]string{"part-of": "shop", "app": fmt.Sprint(i)})
			}
			labels := map[string]string{"part-of": "shop", "app": "7", "pod-template-hash": "abc", "tier": "web"}
			b.ReportAllocs()
			for b.Loop() {
				found := map[name]struct{}{}
				x.selecting("shop", labels, found)
				if len(found) != 1 {
					b.Fatal(found)
				}
			}
		})
	}
}
