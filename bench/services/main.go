// Command services measures how fast Fairway's API server creates and deletes
// Services: over HTTP, with every address and port claimed in an embedded etcd that
// fsyncs every write. It prints one line of JSON. bench/services.sh runs it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/pprof"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/apiserver"
)

// result is what one run prints. Latencies are of single creates, as a client sees them.
type result struct {
	Services            int     `json:"services"`
	Workers             int     `json:"workers"`
	Type                string  `json:"type"`
	Families            int     `json:"families"`
	CreatesPerSecond    float64 `json:"creates_per_second"`
	ConfigMapsPerSecond float64 `json:"configmaps_per_second"` // for comparison: one write, nothing to claim
	MedianMs            float64 `json:"median_ms"`
	P99Ms               float64 `json:"p99_ms"`
	DeletesPerSecond    float64 `json:"deletes_per_second"`
}

// profile starts profiling and returns what ends it.
var profile = func() func() { return func() {} }

func main() {
	n := flag.Int("n", 2000, "Services to create")
	workers := flag.Int("workers", 8, "clients that create them at the same time")
	typ := flag.String("type", "ClusterIP", "type of the Services: ClusterIP, NodePort or LoadBalancer")
	dual := flag.Bool("dual", false, "give each Service an address of both families")
	cpu := flag.String("cpu", "", "write a CPU profile of the creates to this file")
	flag.Parse()
	if *cpu != "" {
		f, err := os.Create(*cpu)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		profile = func() func() {
			_ = pprof.StartCPUProfile(f)
			return pprof.StopCPUProfile
		}
	}
	r, err := run(*n, *workers, corev1.ServiceType(*typ), *dual)
	if err != nil {
		fmt.Fprintln(os.Stderr, "services bench:", err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
}

func run(n, workers int, typ corev1.ServiceType, dual bool) (*result, error) {
	dir, err := os.MkdirTemp("", "fairway-bench-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	s, err := apiserver.Start(ctx, apiserver.Options{DataDir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer s.Shutdown()
	config, err := s.ClientConfig(apiserver.Admin())
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // as fast as it goes
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	services := client.CoreV1().Services("default")

	each := func(do func(i int) error) (float64, error) {
		start := time.Now()
		g := errgroup.Group{}
		for w := range workers {
			g.Go(func() error {
				for i := w; i < n; i += workers {
					if err := do(i); err != nil {
						return err
					}
				}
				return nil
			})
		}
		err := g.Wait()
		return float64(n) / time.Since(start).Seconds(), err
	}
	took := make([]time.Duration, n)
	r := &result{Services: n, Workers: workers, Type: string(typ), Families: 1}
	policy := corev1.IPFamilyPolicySingleStack
	if dual {
		policy, r.Families = corev1.IPFamilyPolicyRequireDualStack, 2
	}
	plain, err := each(func(i int) error {
		_, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%d", i)}}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, err
	}
	stop := profile()
	r.CreatesPerSecond, err = each(func(i int) error {
		start := time.Now()
		_, err := services.Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%d", i)},
			Spec: corev1.ServiceSpec{
				Type:           typ,
				IPFamilyPolicy: &policy,
				Selector:       map[string]string{"app": "x"},
				Ports:          []corev1.ServicePort{{Port: 80}},
			},
		}, metav1.CreateOptions{})
		took[i] = time.Since(start)
		return err
	})
	if err != nil {
		return nil, err
	}
	stop()
	r.ConfigMapsPerSecond = plain
	slices.Sort(took)
	r.MedianMs = float64(took[n/2].Microseconds()) / 1000
	r.P99Ms = float64(took[n*99/100].Microseconds()) / 1000
	r.DeletesPerSecond, err = each(func(i int) error {
		return services.Delete(ctx, fmt.Sprintf("s%d", i), metav1.DeleteOptions{})
	})
	return r, err
}
