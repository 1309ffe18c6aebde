package endpoints

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
)

// BenchmarkSync is the cost of a look at one Service, nothing having changed,
// by its number of Pods.
func BenchmarkSync(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprintf("pods=%d", n), func(b *testing.B) {
			client := fake.NewClientset()
			made := 0
			client.PrependReactor("create", "endpointslices", func(a ktesting.Action) (bool, runtime.Object, error) {
				made++ // the fake does not generate names
				s := a.(ktesting.CreateAction).GetObject().(*discovery.EndpointSlice)
				s.Name = fmt.Sprint(s.GenerateName, made)
				return false, nil, nil
			})
			f := informers.NewSharedInformerFactory(client, 0)
			core := f.Core().V1()
			c, err := New(Options{Client: client, Logger: slog.New(slog.DiscardHandler), Informers: Informers{
				Services: core.Services(), Pods: core.Pods(), Nodes: core.Nodes(), Endpoints: core.Endpoints(), Slices: f.Discovery().V1().EndpointSlices(),
			}})
			if err != nil {
				b.Fatal(err)
			}
			labels := map[string]string{"app": "web"}
			core.Nodes().Informer().GetStore().Add(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
			core.Services().Informer().GetStore().Add(&v1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "s"},
				Spec: v1.ServiceSpec{Selector: labels, IPFamilies: []v1.IPFamily{v1.IPv4Protocol}, ClusterIP: "10.96.0.7",
					Ports: []v1.ServicePort{{Port: 80}}},
			})
			for i := range n {
				pod := podNamed(name{Namespace: "shop", Name: fmt.Sprint(i)}, labels, "n")
				pod.UID = types.UID(fmt.Sprint(i))
				pod.Status.PodIPs = []v1.PodIP{{IP: fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)}}
				core.Pods().Informer().GetStore().Add(pod)
				c.podIndex.set(pod)
			}
			key := name{Namespace: "shop", Name: "web"}
			if err := c.syncSlices(context.Background(), key); err != nil {
				b.Fatal(err)
			}
			list, err := client.DiscoveryV1().EndpointSlices("shop").List(context.Background(), metav1.ListOptions{})
			if err != nil {
				b.Fatal(err)
			}
			for i := range list.Items {
				list.Items[i].UID = types.UID(list.Items[i].Name)
				f.Discovery().V1().EndpointSlices().Informer().GetStore().Add(&list.Items[i])
			}
			c.slicesTracker.DeleteService("shop", "web")
			b.ReportAllocs()
			for b.Loop() {
				if err := c.syncSlices(context.Background(), key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
