// Command endpoints measures how long it takes from the moment an agent says
// that a Pod is ready (it sends the status) until a watcher of EndpointSlices
// sees it, with many Services present: Fairway's endpoints
// controller, and upstream's three in the same process for comparison. Both
// run beside all other controllers on the embedded API. It prints a line of
// JSON for each and the ratio. bench/endpoints.sh runs it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	upstreamendpoints "k8s.io/kubernetes/pkg/controller/endpoint"
	upstreamslices "k8s.io/kubernetes/pkg/controller/endpointslice"
	upstreammirror "k8s.io/kubernetes/pkg/controller/endpointslicemirroring"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/controller"
)

var (
	services = flag.Int("services", 5000, "Services, each with one Pod, all in one namespace")
	changes  = flag.Int("changes", 1000, "Pods that become ready or unready, one after the other")
	which    = flag.String("which", "fairway,upstream", "whose controllers to measure")
	burst    = flag.Int("burst", 50, "Pods that do so at once, in a second round")
)

func main() {
	flag.Parse()
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	if err := run(strings.Split(*which, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "endpoints bench:", err)
		os.Exit(1)
	}
}

// run measures one in this process, several in a process each.
func run(which []string) error {
	if len(which) == 1 {
		r, err := measure(which[0])
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	var results []result
	for _, w := range which {
		cmd := exec.Command(os.Args[0], "-which", w, fmt.Sprintf("-services=%d", *services), fmt.Sprintf("-changes=%d", *changes), fmt.Sprintf("-burst=%d", *burst))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("%s: %w", w, err)
		}
		fmt.Print(string(out))
		var r result
		if err := json.Unmarshal(out, &r); err != nil {
			return err
		}
		results = append(results, r)
	}
	a, b := results[0], results[1]
	fmt.Printf("%s takes %.1f times as long as %s at the median, %.1f times at the 99th percentile\n",
		b.Controller, b.SingleP50/a.SingleP50, a.Controller, b.SingleP99/a.SingleP99)
	return nil
}

// result is in milliseconds.
type result struct {
	Controller string  `json:"controller"`
	Services   int     `json:"services"`
	Load       float64 `json:"loadSeconds"` // until all slices have their Pod
	SingleP50  float64 `json:"p50ms"`
	SingleP99  float64 `json:"p99ms"`
	BurstP50   float64 `json:"burstP50ms"`
	BurstP99   float64 `json:"burstP99ms"`
}

func measure(which string) (*result, error) {
	dir, err := os.MkdirTemp("", "fairway-bench-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	server, err := apiserver.Start(ctx, apiserver.Options{DataDir: dir, Logger: log})
	if err != nil {
		cancel()
		return nil, err
	}
	done := make(chan error, 1)
	defer func() {
		cancel()
		<-done
		<-server.Done()
	}()
	o := controller.Options{
		ClientConfig: func(user string, groups ...string) (*rest.Config, error) {
			return server.ClientConfig(apiserver.Identity{User: user, Groups: groups})
		},
		Logger: log,
		Nodes:  controller.NodeTimes{Grace: time.Hour}, // nobody renews the node's lease
	}
	if which == "upstream" {
		o.Without = []string{"endpoints"}
	}
	go func() { done <- controller.Run(ctx, o) }()
	config, err := server.ClientConfig(apiserver.Admin())
	if err != nil {
		return nil, err
	}
	config.WarningHandler = rest.NoWarnings{}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	if which == "upstream" {
		startUpstream(ctx, client)
	}
	b := &bench{client: client, seen: map[string]bool{}, wait: map[string]chan struct{}{}}
	return b.run(ctx, which)
}

// startUpstream runs upstream's controllers as kube-controller-manager does.
func startUpstream(ctx context.Context, client kubernetes.Interface) {
	f := informers.NewSharedInformerFactory(client, 0)
	core, d := f.Core().V1(), f.Discovery().V1()
	s := upstreamslices.NewController(ctx, core.Pods(), core.Services(), core.Nodes(), d.EndpointSlices(), 100, client, 0)
	e := upstreamendpoints.NewEndpointController(ctx, core.Pods(), core.Services(), core.Endpoints(), client, 0)
	m := upstreammirror.NewController(ctx, core.Endpoints(), d.EndpointSlices(), core.Services(), 1000, client, 0)
	f.Start(ctx.Done())
	go s.Run(ctx, 5)
	go e.Run(ctx, 5)
	go m.Run(ctx, 5)
}

type bench struct {
	client kubernetes.Interface
	mu     sync.Mutex
	seen   map[string]bool          // Service → is its endpoint ready, as last seen
	wait   map[string]chan struct{} // Service → closed when that changes
}

func (b *bench) run(ctx context.Context, which string) (*result, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(b.client, 0, informers.WithNamespace("default"))
	informer := factory.Discovery().V1().EndpointSlices().Informer()
	see := func(obj any) {
		s, ok := obj.(*discovery.EndpointSlice)
		if !ok || len(s.Endpoints) == 0 || s.Labels[discovery.LabelServiceName] == "kubernetes" {
			return
		}
		service, ready := s.Labels[discovery.LabelServiceName], *s.Endpoints[0].Conditions.Ready
		b.mu.Lock()
		defer b.mu.Unlock()
		if was, known := b.seen[service]; known && was == ready {
			return
		}
		b.seen[service] = ready
		if c := b.wait[service]; c != nil {
			close(c)
			delete(b.wait, service)
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, now any) { see(now) }}); err != nil {
		return nil, err
	}
	factory.Start(ctx.Done())
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := b.load(ctx); err != nil {
		return nil, err
	}
	r := &result{Controller: which, Services: *services, Load: time.Since(began).Seconds()}
	time.Sleep(5 * time.Second) // v1 Endpoints follow; let it be quiet

	var single []time.Duration
	for i := range *changes {
		took, err := b.change(ctx, (i*37)%*services)
		if err != nil {
			return nil, err
		}
		single = append(single, took)
	}
	var all []time.Duration
	for round := range 20 {
		var wg sync.WaitGroup
		took := make([]time.Duration, *burst)
		for i := range *burst {
			wg.Go(func() { took[i], _ = b.change(ctx, (round**burst+i)*3%*services) })
		}
		wg.Wait()
		all = append(all, took...)
	}
	r.SingleP50, r.SingleP99 = percentile(single, 50), percentile(single, 99)
	r.BurstP50, r.BurstP99 = percentile(all, 50), percentile(all, 99)
	return r, nil
}

func percentile(d []time.Duration, p int) float64 {
	slices.Sort(d)
	return float64(d[min(len(d)*p/100, len(d)-1)].Microseconds()) / 1000
}

// prepare makes a node and waits until Pods may be made.
func (b *bench) prepare(ctx context.Context) error {
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
	if _, err := b.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return err
	}
	for {
		if _, err := b.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// load makes the Services and their Pods and waits for their slices.
func (b *bench) load(ctx context.Context) error {
	jobs := make(chan int)
	errs := make(chan error, 16)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range jobs {
				if err := b.make(ctx, i); err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		})
	}
	for i := range *services {
		jobs <- i
	}
	close(jobs)
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	for {
		b.mu.Lock()
		n := len(b.seen)
		b.mu.Unlock()
		if n == *services {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func name(i int) string { return fmt.Sprintf("s%d", i) }

func (b *bench) make(ctx context.Context, i int) error {
	labels := map[string]string{"app": name(i), "part-of": "shop"}
	_, err := b.client.CoreV1().Services("default").Create(ctx, &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name(i)},
		Spec:       v1.ServiceSpec{Selector: labels, Ports: []v1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = b.client.CoreV1().Pods("default").Create(ctx, &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name(i), Labels: labels},
		Spec:       v1.PodSpec{NodeName: "node-1", Containers: []v1.Container{{Name: "c", Image: "host"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return b.setReady(ctx, i, true)
}

func (b *bench) setReady(ctx context.Context, i int, ready bool) error {
	status := v1.ConditionFalse
	if ready {
		status = v1.ConditionTrue
	}
	ip := fmt.Sprintf("10.244.%d.%d", i/250, i%250+1)
	patch, err := json.Marshal(map[string]any{"status": v1.PodStatus{
		Phase: v1.PodRunning, PodIP: ip, PodIPs: []v1.PodIP{{IP: ip}},
		Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: status, LastTransitionTime: metav1.Now()}},
	}})
	if err != nil {
		return err
	}
	_, err = b.client.CoreV1().Pods("default").Patch(ctx, name(i), types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// change flips a Pod's readiness and returns the time from asking for that to
// its sight in the slice: two writes to the API and two watches.
func (b *bench) change(ctx context.Context, i int) (time.Duration, error) {
	seen := make(chan struct{})
	b.mu.Lock()
	ready := !b.seen[name(i)]
	b.wait[name(i)] = seen
	b.mu.Unlock()
	began := time.Now()
	if err := b.setReady(ctx, i, ready); err != nil {
		return 0, err
	}
	select {
	case <-seen:
		return time.Since(began), nil
	case <-time.After(time.Minute):
		return 0, fmt.Errorf("%s: no change of its slice in a minute", name(i))
	}
}
