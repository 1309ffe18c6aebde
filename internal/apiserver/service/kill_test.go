package service

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/utils/ptr"
)

// The kill test runs servers and their etcd as processes of their own: this test binary again, in a role.
const (
	roleEnv     = "FAIRWAY_SERVICE_TEST_ROLE" // "etcd DIR LISTEN" or "server ENDPOINT SEED"
	killLeakAge = 4 * time.Second
	killNames   = 60 // Services that all servers fight for
	killWorkers = 4  // per server
)

func killOptions(o *clusterOptions) {
	o.cidrs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/26"), netip.MustParsePrefix("fd00:10:96::/121")}
	o.ports = "30000-30127"
	o.leakAge = killLeakAge
	o.logger = slog.New(slog.NewTextHandler(io.Discard, nil))
}

// TestKill: random creates, updates and deletes of Services by two servers on one etcd, while servers and etcd are killed and
// started again. At no time do two Services hold the same thing; and when all is over and repaired, what Services hold is
// exactly what is claimed.
func TestKill(t *testing.T) {
	want := *flagOps
	if want == 0 {
		want = 2000
	}
	if testing.Short() {
		want = min(want, 500)
	}
	seed := *flagSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (the interleaving is not repeatable)", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	var ops atomic.Int64
	dir := t.TempDir()
	etcd := startRole(t, nil, "etcd", dir, "127.0.0.1:0")
	endpoint := etcd.waitReady(t)
	o := clusterOptions{storage: storageAt(endpoint, "/kill")}
	killOptions(&o)
	c, err := openCluster(o)
	if err != nil {
		t.Fatal(err)
	}
	c.t = t
	defer c.close()
	newServer := func() *process { return startRole(t, &ops, "server", endpoint, fmt.Sprint(rng.Uint64())) }
	servers := []*process{newServer(), newServer()}
	for _, s := range servers {
		s.waitReady(t)
	}

	var kills, etcdKills, snapshots int
	deadline := time.Now().Add(4 * time.Minute)
	for ops.Load() < int64(want) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d operations in 4 minutes", ops.Load(), want)
		}
		time.Sleep(time.Duration(100+rng.IntN(300)) * time.Millisecond)
		if svcs, err := c.list(); err == nil {
			snapshots++
			if twice := heldTwice(svcs); len(twice) > 0 {
				t.Fatalf("held twice: %v", twice)
			}
		}
		if rng.IntN(8) == 0 {
			etcd.kill(t)
			etcd = startRole(t, nil, "etcd", dir, endpoint)
			etcd.waitReady(t)
			etcdKills++
			continue
		}
		i := rng.IntN(len(servers))
		servers[i].kill(t)
		kills++
		servers[i] = newServer()
		if rng.IntN(2) == 0 {
			servers[i].waitReady(t)
		}
	}
	for _, s := range servers {
		s.kill(t)
	}
	left := c.audit()
	c.repairs(3)
	c.checkAudit()
	svcs := c.services()
	for i := range svcs {
		if errs := newStrategy.ValidateUpdate(c.ctx, &svcs[i], &svcs[i]); len(errs) > 0 {
			t.Errorf("stored and not valid: %s: %v", svcs[i].Name, errs)
		}
	}
	t.Logf("%d operations, %d servers and %d etcds killed, %d snapshots; %d Services and %d leaks left, all mended", ops.Load(), kills, etcdKills, snapshots, len(svcs), len(left))
}

func (c *cluster) list() ([]core.Service, error) {
	ctx, cancel := context.WithTimeout(c.ctx, 2*time.Second)
	defer cancel()
	obj, err := c.rest.List(withNamespace(ctx, ""), nil)
	if err != nil {
		return nil, err
	}
	return obj.(*core.ServiceList).Items, nil
}

// heldTwice returns what two Services hold, of a list that etcd read at one moment.
func heldTwice(svcs []core.Service) []string {
	var twice []string
	held := map[string]string{}
	hold := func(id, name string) {
		if other := held[id]; other != "" {
			twice = append(twice, fmt.Sprintf("%s by %s and %s", id, other, name))
		}
		held[id] = name
	}
	for i := range svcs {
		h := holdingsOf(&svcs[i])
		for _, a := range h.addrs {
			hold(a.String(), svcs[i].Name)
		}
		for _, p := range h.ports {
			hold(fmt.Sprint(p), svcs[i].Name)
		}
	}
	return twice
}

// process is this binary in a role.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ready chan string
	done  chan struct{} // its output has ended
}

// startRole starts a process. Each line "op" that it prints counts; it prints "ready WHAT" once. It ends when its standard
// input does, so never outlives the test.
func startRole(t *testing.T, ops *atomic.Int64, role ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0]), ready: make(chan string, 1), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), roleEnv+"="+strings.Join(role, " "))
	stdout, err1 := p.cmd.StdoutPipe()
	stdin, err2 := p.cmd.StdinPipe()
	var errput strings.Builder
	p.cmd.Stderr = &errput
	p.stdin = stdin
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		sc := bufio.NewScanner(stdout)
		for sc.Scan() {
			if what, ok := strings.CutPrefix(sc.Text(), "ready "); ok {
				p.ready <- what
			} else if sc.Text() == "op" && ops != nil {
				ops.Add(1)
			}
		}
	}()
	t.Cleanup(func() {
		p.kill(t)
		if s := errput.String(); strings.Contains(s, "panic") || strings.Contains(s, "fatal error") {
			t.Errorf("%v: %s", role, s)
		}
	})
	return p
}

func (p *process) waitReady(t *testing.T) string {
	t.Helper()
	select {
	case what := <-p.ready:
		return what
	case <-p.done:
		t.Fatal("process ended while it started")
	case <-time.After(time.Minute):
		t.Fatal("process not ready after a minute")
	}
	return ""
}

// kill is kill -9.
func (p *process) kill(t *testing.T) {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	_ = p.cmd.Wait()
	p.stdin.Close()
	if code := p.cmd.ProcessState.ExitCode(); code != -1 {
		t.Errorf("a process ended by itself, with %d", code)
	}
}

// runRole is main in a role.
func runRole(role string) int {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	args := strings.Fields(role)
	switch args[0] {
	case "etcd":
		endpoint, _, err := startEtcd(args[1], args[2], false)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println("ready", endpoint)
		select {}
	case "server":
		seed, _ := strconv.ParseUint(args[2], 10, 64)
		if err := runServer(args[1], seed); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return 1
}

// runServer runs a registry with its repair and does random things to Services until it is killed.
func runServer(endpoint string, seed uint64) error {
	o := clusterOptions{storage: storageAt(endpoint, "/kill")}
	killOptions(&o)
	c, err := openCluster(o)
	if err != nil {
		return err
	}
	go c.reg.Run(context.Background())
	fmt.Println("ready server")
	var wg sync.WaitGroup
	for w := range killWorkers {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			for {
				randomOp(c, rng)
				fmt.Println("op")
			}
		})
	}
	wg.Wait()
	return nil
}

// randomOp does one thing to one Service. It may fail: Services and ranges are too few.
func randomOp(c *cluster, rng *rand.Rand) {
	name := fmt.Sprintf("s%d", rng.IntN(killNames))
	// What admission plugins and quota do between claiming and storing takes time.
	dawdle := func() { time.Sleep(time.Duration(rng.IntN(4)) * time.Millisecond) }
	validate := func(context.Context, runtime.Object) error { dawdle(); return nil }
	validateUpdate := func(context.Context, runtime.Object, runtime.Object) error { dawdle(); return nil }
	switch n := rng.IntN(100); {
	case n < 40:
		s := svc(name, func(s *corev1.Service) { randomize(s, rng) })
		_, _ = c.rest.Create(c.ctx, defaulted(s), validate, &metav1.CreateOptions{})
	case n < 80:
		info := rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
			s := svc(name)
			if o := old.(*core.Service); o.ResourceVersion != "" && rng.IntN(3) > 0 {
				s = external(o.DeepCopy())
			}
			randomize(s, rng)
			return defaulted(s), nil
		})
		_, _, _ = c.rest.Update(c.ctx, name, info, validate, validateUpdate, false, &metav1.UpdateOptions{})
	case n < 85:
		_, _ = c.create(svc(name, func(s *corev1.Service) { randomize(s, rng) }), metav1.DryRunAll)
	default:
		_ = c.delete(name)
	}
}

// randomize makes some Service of s: often a valid one.
func randomize(s *corev1.Service, rng *rand.Rand) {
	if rng.IntN(4) > 0 {
		forms[rng.IntN(len(forms))].become(s)
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName && rng.IntN(10) > 0 {
		return
	}
	switch rng.IntN(5) {
	case 0:
		s.Spec.IPFamilyPolicy, s.Spec.IPFamilies, s.Spec.ClusterIPs = ptr.To(single), nil, nil
	case 1:
		s.Spec.IPFamilyPolicy = ptr.To(prefer)
	case 2:
		s.Spec.IPFamilyPolicy = ptr.To(required)
	}
	if rng.IntN(10) == 0 {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = fmt.Sprintf("10.96.0.%d", rng.IntN(64)), nil
	}
	if rng.IntN(4) == 0 {
		i := rng.IntN(3)
		p := corev1.ServicePort{Name: fmt.Sprintf("p%d", i), Port: int32(80 + i), Protocol: []corev1.Protocol{"TCP", "UDP"}[rng.IntN(2)]}
		if s.Spec.Ports[0].Name == "" {
			s.Spec.Ports[0].Name = "first"
		}
		if j := slices.IndexFunc(s.Spec.Ports, func(q corev1.ServicePort) bool { return q.Name == p.Name }); j >= 0 {
			s.Spec.Ports = slices.Delete(s.Spec.Ports, j, j+1)
		} else {
			s.Spec.Ports = append(s.Spec.Ports, p)
		}
	}
	if len(s.Spec.Ports) > 0 && rng.IntN(6) == 0 {
		s.Spec.Ports[rng.IntN(len(s.Spec.Ports))].NodePort = int32(30000 + rng.IntN(130))
	}
}
