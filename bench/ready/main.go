// Command ready measures how long it takes from the moment a Pod is said to be
// ready (its status is sent to the API) until connections to its Service
// succeed on every node: the endpoints controller, the watches and the kernels
// of all nodes together. Before, every node refuses them. bench/ready.sh runs
// it on an instance of its own.
//
// The Pod is one that no agent runs: this program writes its status, with the
// address of an echo server that does run, on a Node that it keeps alive.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/netns"
)

func main() {
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "of the instance")
	nodes := flag.String("nodes", "", "network namespaces of the nodes, separated by commas")
	target := flag.String("target", "", "address of an echo server in a Pod, which answers on port 8080")
	services := flag.Int("services", 5000, "other Services to make first")
	rounds := flag.Int("rounds", 200, "how often the Pod becomes ready")
	flag.Parse()
	if err := run(*kubeconfig, strings.Split(*nodes, ","), *target, *services, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "ready bench:", err)
		os.Exit(1)
	}
}

const name = "bench-ready"

type bench struct {
	client kubernetes.Interface
	nodes  []*netns.NS
	url    string // the Service's address and port
	target string
}

func run(kubeconfig string, names []string, target string, services, rounds int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{} // v1 Endpoints are deprecated
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	b := &bench{client: client, target: target}
	for _, n := range names {
		ns, err := netns.Open(n)
		if err != nil {
			return err
		}
		defer ns.Close()
		b.nodes = append(b.nodes, ns)
	}
	began := time.Now()
	if err := b.load(ctx, services); err != nil {
		return err
	}
	fmt.Printf("%d Services made in %.1f s", services, time.Since(began).Seconds())
	if err := b.settle(ctx, services); err != nil {
		return err
	}
	fmt.Printf(", their endpoints written after %.1f s\n", time.Since(began).Seconds())
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := b.eachNode(false, time.Now(), nil); err != nil {
		return err
	}
	var took []time.Duration
	for i := range rounds {
		at := make([]time.Duration, len(b.nodes))
		watching := make(chan error, 1)
		began := time.Now()
		go func() { watching <- b.eachNode(true, began, at) }()
		time.Sleep(20 * time.Millisecond) // the watchers are at it
		start := time.Since(began)
		if err := b.setReady(ctx, true); err != nil {
			return err
		}
		if err := <-watching; err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		took = append(took, slices.Max(at)-start)
		if err := b.setReady(ctx, false); err != nil {
			return err
		}
		if err := b.eachNode(false, time.Now(), nil); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
	}
	slices.Sort(took)
	ms := func(p int) float64 {
		return float64(took[min(len(took)*p/100, len(took)-1)].Microseconds()) / 1000
	}
	fmt.Printf("ready to all %d nodes' kernels with %d Services: p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, max %.1f ms (%d rounds)\n",
		len(b.nodes), services, ms(50), ms(90), ms(99), ms(100), rounds)
	return nil
}

// load makes Services without Pods.
func (b *bench) load(ctx context.Context, n int) error {
	jobs, errs := make(chan int), make(chan error, 8)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range jobs {
				_, err := b.client.CoreV1().Services("default").Create(ctx, &v1.Service{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("load-%d", i)},
					Spec:       v1.ServiceSpec{Selector: map[string]string{"app": fmt.Sprintf("load-%d", i), "part-of": "load"}, Ports: []v1.ServicePort{{Port: 80}}},
				}, metav1.CreateOptions{})
				if err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		})
	}
	for i := range n {
		jobs <- i
	}
	close(jobs)
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// settle waits until the controllers have written all there is to write for
// the Services, v1 Endpoints last.
func (b *bench) settle(ctx context.Context, services int) error {
	for {
		list, err := b.client.CoreV1().Endpoints("default").List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		if len(list.Items) >= services {
			time.Sleep(3 * time.Second)
			return nil
		}
		time.Sleep(time.Second)
	}
}

// prepare makes the Node, the Pod and its Service.
func (b *bench) prepare(ctx context.Context) error {
	if _, err := b.client.CoreV1().Nodes().Create(ctx, &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.NodeSpec{Unschedulable: true}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(name), RenewTime: &metav1.MicroTime{Time: time.Now()}}}
	lease, err := b.client.CoordinationV1().Leases("kube-node-lease").Create(ctx, lease, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	go func() {
		for ctx.Err() == nil {
			time.Sleep(4 * time.Second)
			lease.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
			if l, err := b.client.CoordinationV1().Leases("kube-node-lease").Update(ctx, lease, metav1.UpdateOptions{}); err == nil {
				lease = l
			}
		}
	}()
	status := []byte(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Bench","message":"kept by the benchmark","lastHeartbeatTime":null,"lastTransitionTime":null}]}}`)
	if _, err := b.client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		return err
	}
	labels := map[string]string{"app": name}
	svc, err := b.client.CoreV1().Services("default").Create(ctx, &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1.ServiceSpec{Selector: labels, Ports: []v1.ServicePort{{Port: 8080}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	b.url = net.JoinHostPort(svc.Spec.ClusterIP, "8080")
	if _, err := b.client.CoreV1().Pods("default").Create(ctx, &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: v1.PodSpec{NodeName: name, Containers: []v1.Container{{Name: "c", Image: "host", Command: []string{"true"}}},
			Tolerations: []v1.Toleration{{Operator: v1.TolerationOpExists}}},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	return b.setReady(ctx, false)
}

func (b *bench) setReady(ctx context.Context, ready bool) error {
	status := v1.ConditionFalse
	if ready {
		status = v1.ConditionTrue
	}
	patch, err := json.Marshal(map[string]any{"status": v1.PodStatus{
		Phase: v1.PodRunning, PodIP: b.target, PodIPs: []v1.PodIP{{IP: b.target}},
		Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: status, LastTransitionTime: metav1.Now()}},
	}})
	if err != nil {
		return err
	}
	_, err = b.client.CoreV1().Pods("default").Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// eachNode connects on every node, again and again, until connections succeed
// (or, with connect false, are refused), and notes when since began they did.
func (b *bench) eachNode(connect bool, began time.Time, at []time.Duration) error {
	errs := make([]error, len(b.nodes))
	var wg sync.WaitGroup
	for i, ns := range b.nodes {
		wg.Go(func() {
			errs[i] = ns.Do(func() error {
				for {
					c, err := net.DialTimeout("tcp", b.url, time.Second)
					if err == nil {
						c.Close()
					}
					if (err == nil) == connect {
						if at != nil {
							at[i] = time.Since(began)
						}
						return nil
					}
					if time.Since(began) > time.Minute {
						return errors.Join(fmt.Errorf("%s: connections (wanted: %v) not within a minute", ns.Name(), connect), err)
					}
					time.Sleep(time.Millisecond)
				}
			})
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
