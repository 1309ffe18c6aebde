package apiserver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// TestServices drives the Service registry through a real server, as clients do.
// Its rules and transitions have tables of their own beside it.
func TestServices(t *testing.T) {
	s := apitest.Start(t)
	client := apitest.Client(t, s, apiserver.Admin())
	services := client.CoreV1().Services("default")
	ctx := t.Context()
	watch, err := services.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=web"})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()

	web := service("web")
	web.Spec.Type = corev1.ServiceTypeNodePort
	made, err := services.Create(ctx, web, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if seen := (<-watch.ResultChan()).Object.(*corev1.Service); seen.Spec.ClusterIP != made.Spec.ClusterIP || seen.Spec.ClusterIP == "" {
		t.Errorf("watch saw %q, want %q", seen.Spec.ClusterIP, made.Spec.ClusterIP)
	}
	ip, err := client.NetworkingV1().IPAddresses().Get(ctx, made.Spec.ClusterIP, metav1.GetOptions{})
	if err != nil || ip.Spec.ParentRef.Name != "web" {
		t.Errorf("the address's IPAddress: %v, %v", ip, err)
	}
	port := made.Spec.Ports[0].NodePort

	patch := func(kind types.PatchType, body string, subresources ...string) *corev1.Service {
		t.Helper()
		out, err := services.Patch(ctx, "web", kind, []byte(body), metav1.PatchOptions{}, subresources...)
		if err != nil {
			t.Fatalf("%s %s: %v", kind, body, err)
		}
		return out
	}
	if got := patch(types.StrategicMergePatchType, `{"spec":{"type":"LoadBalancer"}}`); got.Spec.Ports[0].NodePort != port {
		t.Errorf("node port %d became %d", port, got.Spec.Ports[0].NodePort)
	}
	if got := patch(types.MergePatchType, `{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.7"}]}}}`, "status"); len(got.Status.LoadBalancer.Ingress) != 1 || *got.Status.LoadBalancer.Ingress[0].IPMode != corev1.LoadBalancerIPModeVIP {
		t.Errorf("status %+v", got.Status)
	}
	if got := patch(types.JSONPatchType, `[{"op":"replace","path":"/spec/ports/0/port","value":81}]`); got.Spec.Ports[0].Port != 81 || got.Spec.Ports[0].NodePort != port || len(got.Status.LoadBalancer.Ingress) != 1 {
		t.Errorf("%+v", got)
	}
	if got := patch(types.MergePatchType, `{"spec":{"type":"ClusterIP"}}`); got.Spec.Ports[0].NodePort != 0 || got.Spec.ClusterIP != made.Spec.ClusterIP || len(got.Status.LoadBalancer.Ingress) != 0 {
		t.Errorf("%+v", got)
	}
	other := service("other")
	other.Spec.Type = corev1.ServiceTypeNodePort
	other.Spec.Ports[0].NodePort = port
	if _, err := services.Create(ctx, other, metav1.CreateOptions{}); err != nil {
		t.Errorf("the port that web gave up: %v", err)
	}

	// Server-side apply: whoever does not own a field meets a conflict.
	apply := func(manager string, n int32, force bool) error {
		_, err := services.Apply(ctx, applycorev1.Service("web", "default").WithSpec(applycorev1.ServiceSpec().
			WithSessionAffinityConfig(applycorev1.SessionAffinityConfig().WithClientIP(applycorev1.ClientIPConfig().WithTimeoutSeconds(n))).
			WithSessionAffinity(corev1.ServiceAffinityClientIP)), metav1.ApplyOptions{FieldManager: manager, Force: force})
		return err
	}
	if err := apply("a", 60, true); err != nil {
		t.Error(err)
	}
	if err := apply("b", 61, false); !apierrors.IsConflict(err) {
		t.Errorf("error %v, want a conflict", err)
	}

	// Refusals name the field, the value and the rule.
	bad := service("bad")
	bad.Spec.ClusterIP = "10.1.2.3"
	_, err = services.Create(ctx, bad, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), `spec.clusterIPs: Invalid value: ["10.1.2.3"]: failed to allocate IP 10.1.2.3: the provided IP (10.1.2.3) is not in the valid range`) {
		t.Errorf("error %v", err)
	}
	if got, err := services.Create(ctx, service("dry"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil || got.Spec.ClusterIP == "" {
		t.Errorf("dry run: %v, %v", got, err)
	}

	list, err := services.List(ctx, metav1.ListOptions{FieldSelector: "spec.type=NodePort"})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "other" {
		t.Errorf("by type: %v, %v", list, err)
	}
	raw, err := client.CoreV1().RESTClient().Get().Namespace("default").Resource("services").
		SetHeader("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1").DoRaw(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(raw, &table); err != nil {
		t.Fatal(err)
	}
	var columns []string
	for _, c := range table.ColumnDefinitions {
		if c.Priority == 0 {
			columns = append(columns, c.Name)
		}
	}
	if want := []string{"Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age"}; !slices.Equal(columns, want) {
		t.Errorf("columns %q, want %q", columns, want)
	}

	if err := client.CoreV1().RESTClient().Delete().Namespace("default").Resource("services").Param("fieldSelector", "metadata.name!=kubernetes").Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	ips, err := client.NetworkingV1().IPAddresses().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range ips.Items {
		if ref := ip.Spec.ParentRef; ref.Namespace != "default" || ref.Name != "kubernetes" {
			t.Errorf("%s is left of %s/%s", ip.Name, ref.Namespace, ref.Name)
		}
	}
}

// TestServiceCIDRs adds a ServiceCIDR to a full cluster, at run time, and takes it
// away again, which it lets happen only when nothing is left of it.
func TestServiceCIDRs(t *testing.T) {
	t.Parallel()
	s := apitest.Start(t, func(o *apiserver.Options) {
		o.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/29")}
	})
	client := apitest.Client(t, s, apiserver.Admin())
	services, cidrs := client.CoreV1().Services("default"), client.NetworkingV1().ServiceCIDRs()
	ctx := t.Context()
	first, err := cidrs.Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || !slices.Equal(first.Spec.CIDRs, []string{"10.96.0.0/29"}) {
		t.Fatalf("the default ServiceCIDR: %v, %v", first, err)
	}
	eventually(t, "default/kubernetes has the first address", func(ctx context.Context) (bool, error) {
		k, err := services.Get(ctx, "kubernetes", metav1.GetOptions{})
		return err == nil && k.Spec.ClusterIP == "10.96.0.1", err
	})
	for i := range 5 {
		if _, err := services.Create(ctx, service(fmt.Sprintf("a%d", i)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := services.Create(ctx, service("b"), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Fatalf("error %v, want that the range is full", err)
	}
	if _, err := cidrs.Create(ctx, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.97.0.0/24"}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b, err := services.Create(ctx, service("b"), metav1.CreateOptions{}) // at once
	if err != nil || !strings.HasPrefix(b.Spec.ClusterIP, "10.97.0.") {
		t.Fatalf("%v, %v", b, err)
	}
	ready := func(want metav1.ConditionStatus) {
		t.Helper()
		eventually(t, fmt.Sprintf("ServiceCIDR more is ready: %s", want), func(ctx context.Context) (bool, error) {
			sc, err := cidrs.Get(ctx, "more", metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			c := meta.FindStatusCondition(sc.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
			return c != nil && c.Status == want && len(sc.Finalizers) == 1, fmt.Errorf("%v %v", c, sc.Finalizers)
		})
	}
	ready(metav1.ConditionTrue)
	if err := cidrs.Delete(ctx, "more", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	ready(metav1.ConditionFalse) // b is in it
	if _, err := services.Create(ctx, service("c"), metav1.CreateOptions{}); err == nil {
		t.Error("an address of a ServiceCIDR that is being deleted was given out")
	}
	if err := services.Delete(ctx, "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ServiceCIDR more is gone", func(ctx context.Context) (bool, error) {
		_, err := cidrs.Get(ctx, "more", metav1.GetOptions{})
		return apierrors.IsNotFound(err), err
	})
}

// narrow are the options of TestServicesKilled: few addresses and ports, so that
// what is lost is missed.
func narrow(o *apiserver.Options) {
	o.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/25"), netip.MustParsePrefix("fd00:10:96::/121")}
	o.NodePorts = apiserver.PortRange{First: 30000, Last: 30063}
}

// servicesToKill is a process that runs a server and creates, changes and deletes
// Services at random, and prints a line for each.
func servicesToKill() {
	o := apiserver.Options{DataDir: os.Getenv("FAIRWAY_TEST_DIR"), Logger: slog.New(slog.DiscardHandler)}
	narrow(&o)
	s, err := apiserver.Start(context.Background(), o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	config, err := s.ClientConfig(apiserver.Admin())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	config.QPS = -1
	services := kubernetes.NewForConfigOrDie(config).CoreV1().Services("default")
	ctx := context.Background()
	patches := []string{
		`{"spec":{"type":"NodePort"}}`, `{"spec":{"type":"ClusterIP"}}`, `{"spec":{"type":"LoadBalancer","externalTrafficPolicy":"Local"}}`,
		`{"spec":{"type":"ExternalName","externalName":"a.b"}}`, `{"spec":{"ipFamilyPolicy":"RequireDualStack"}}`, `{"spec":{"ipFamilyPolicy":"SingleStack"}}`,
	}
	for range 6 {
		go func() {
			for {
				name := fmt.Sprintf("s%d", rand.IntN(40))
				switch rand.IntN(4) {
				case 0:
					svc := service(name)
					svc.Spec.Type = corev1.ServiceTypeNodePort
					_, _ = services.Create(ctx, svc, metav1.CreateOptions{})
				case 1:
					_ = services.Delete(ctx, name, metav1.DeleteOptions{})
				default:
					_, _ = services.Patch(ctx, name, types.MergePatchType, []byte(patches[rand.IntN(len(patches))]), metav1.PatchOptions{})
				}
				fmt.Println("op")
			}
		}()
	}
	select {}
}

// TestServicesKilled kills a server while it writes Services, three times. Its successor
// soon knows of every address and port whose it is, and none is lost. (The registry's own
// test of this does it with more servers and more often.)
func TestServicesKilled(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), roleVariable+"="+roleServices, "FAIRWAY_TEST_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		watchdog := time.AfterFunc(2*limit, func() { cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		n := 0
		for want := 150 + 37*round; n < want && lines.Scan(); n++ {
		}
		cmd.Process.Kill() // SIGKILL
		for lines.Scan() {
		}
		cmd.Wait()
		if !watchdog.Stop() {
			t.Fatalf("round %d: only %d operations in %v", round, n, 2*limit)
		}
	}
	s := apitest.Start(t, func(o *apiserver.Options) { o.DataDir = dir; narrow(o) })
	config := apitest.Config(t, s, apiserver.Admin())
	config.QPS = -1
	client := kubernetes.NewForConfigOrDie(config)
	services := client.CoreV1().Services("default")
	used := map[int32]string{}
	eventually(t, "Services and IPAddresses agree", func(ctx context.Context) (bool, error) {
		list, err := services.List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		ips, err := client.NetworkingV1().IPAddresses().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		held := map[string]string{}
		clear(used)
		for _, svc := range list.Items {
			for _, ip := range svc.Spec.ClusterIPs {
				if other := held[ip]; other != "" {
					t.Fatalf("%s is held by %s and %s", ip, other, svc.Name)
				}
				held[ip] = svc.Name
			}
			ports := []int32{svc.Spec.HealthCheckNodePort}
			for _, p := range svc.Spec.Ports {
				ports = append(ports, p.NodePort)
			}
			for _, p := range ports {
				if other := used[p]; p != 0 && other != "" {
					t.Fatalf("%d is held by %s and %s", p, other, svc.Name)
				}
				if p != 0 {
					used[p] = svc.Name
				}
			}
		}
		for _, ip := range ips.Items {
			if held[ip.Name] != ip.Spec.ParentRef.Name {
				return false, fmt.Errorf("%s refers to %s and is held by %q", ip.Name, ip.Spec.ParentRef.Name, held[ip.Name])
			}
			delete(held, ip.Name)
		}
		return len(held) == 0, fmt.Errorf("held without an IPAddress: %v", held)
	})
	// Claims on node ports cannot be seen; but all the others can be had.
	for free := 64 - len(used); free > 0; free-- {
		svc := service(fmt.Sprintf("free-%d", free))
		svc.Spec.Type = corev1.ServiceTypeNodePort
		eventually(t, fmt.Sprintf("%d of 64 node ports are used, the others can be had, also the last %d", len(used), free), func(ctx context.Context) (bool, error) {
			_, err := services.Create(ctx, svc, metav1.CreateOptions{})
			return err == nil, err
		})
	}
}

// TestRepairTells: what was wrong when the server started is mended, and an event says so.
func TestRepairTells(t *testing.T) {
	dir := t.TempDir()
	at := func(o *apiserver.Options) { o.DataDir = dir }
	s := apitest.Start(t, at)
	client := apitest.Client(t, s, apiserver.Admin())
	web, err := client.CoreV1().Services("default").Create(t.Context(), service("web"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.NetworkingV1().IPAddresses().Delete(t.Context(), web.Spec.ClusterIP, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	client = apitest.Client(t, apitest.Start(t, at), apiserver.Admin())
	eventually(t, "the IPAddress is back", func(ctx context.Context) (bool, error) {
		ip, err := client.NetworkingV1().IPAddresses().Get(ctx, web.Spec.ClusterIP, metav1.GetOptions{})
		return err == nil && ip.Spec.ParentRef.Name == "web", err
	})
	eventually(t, "an event says so", func(ctx context.Context) (bool, error) {
		events, err := client.EventsV1().Events("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for _, e := range events.Items {
			if e.Reason == "ClusterIPNotAllocated" && e.Regarding.Kind == "Service" && e.Regarding.Name == "web" {
				return true, nil
			}
		}
		return false, fmt.Errorf("%d other events", len(events.Items))
	})
}
