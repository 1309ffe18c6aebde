package apiserver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// TestClients lets programs of all sorts use one server.
func TestClients(t *testing.T) {
	t.Parallel()
	s := apitest.Start(t)
	for name, test := range map[string]func(*testing.T, *apiserver.Server){
		"informer":           testInformer,
		"streaming list":     testStreamingList,
		"chunked list":       testChunkedList,
		"selectors":          testSelectors,
		"table":              testTable,
		"patches":            testPatches,
		"dry run":            testDryRun,
		"custom resource":    testCustomResource,
		"controller-runtime": testControllerRuntime,
		"webhook":            testWebhook,
		"policy":             testPolicy,
		"mutating policy":    testMutatingPolicy,
		"node":               testNode,
		"openapi":            testOpenAPI,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
}

// namespace makes a namespace for one test.
func namespace(t *testing.T, c kubernetes.Interface) string {
	t.Helper()
	ns, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func create(t *testing.T, c kubernetes.Interface, ns string, cm *corev1.ConfigMap) *corev1.ConfigMap {
	t.Helper()
	cm, err := c.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cm
}

func testInformer(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	create(t, c, ns, configMap("before"))
	factory := informers.NewSharedInformerFactoryWithOptions(c, 0, informers.WithNamespace(ns))
	var mu sync.Mutex
	seen := map[string]string{}
	note := func(what string, obj any) {
		mu.Lock()
		defer mu.Unlock()
		seen[obj.(*corev1.ConfigMap).Name] += what
	}
	informer := factory.Core().V1().ConfigMaps().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { note("a", o) },
		UpdateFunc: func(_, o any) { note("u", o) },
		DeleteFunc: func(o any) { note("d", o) },
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		t.Fatal("the informer does not sync")
	}
	cm := create(t, c, ns, configMap("after"))
	cm.Data = map[string]string{"a": "b"}
	if _, err := c.CoreV1().ConfigMaps(ns).Update(ctx, cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.CoreV1().ConfigMaps(ns).Delete(ctx, "after", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "events", func(context.Context) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return seen["before"] == "a" && seen["after"] == "aud", fmt.Errorf("seen %v", seen)
	})
}

func testStreamingList(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	for i := range 5 {
		create(t, c, ns, configMap(fmt.Sprintf("cm-%d", i)))
	}
	w, err := c.CoreV1().ConfigMaps(ns).Watch(t.Context(), metav1.ListOptions{
		SendInitialEvents: ptr.To(true), AllowWatchBookmarks: true,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, TimeoutSeconds: ptr.To(int64(limit.Seconds())),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	added := 0
	for e := range w.ResultChan() {
		switch e.Type {
		case watch.Added:
			added++
		case watch.Bookmark:
			if e.Object.(*corev1.ConfigMap).Annotations[metav1.InitialEventsAnnotationKey] == "true" {
				if added != 5 {
					t.Errorf("the list ended after %d objects, want 5", added)
				}
				return
			}
		}
	}
	t.Error("the watch ended before the list did")
}

func testChunkedList(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	for i := range 5 {
		create(t, c, ns, configMap(fmt.Sprintf("cm-%d", i)))
	}
	var pages []int
	token := ""
	for {
		list, err := c.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{Limit: 2, Continue: token})
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, len(list.Items))
		if token = list.Continue; token == "" {
			break
		}
	}
	if fmt.Sprint(pages) != "[2 2 1]" {
		t.Errorf("pages of %v", pages)
	}
}

func testSelectors(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	for i, label := range []string{"red", "green", "red"} {
		cm := configMap(fmt.Sprintf("cm-%d", i))
		cm.Labels = map[string]string{"colour": label}
		create(t, c, ns, cm)
	}
	for selector, want := range map[metav1.ListOptions]int{
		{LabelSelector: "colour=red"}:                                   2,
		{LabelSelector: "colour!=red"}:                                  1,
		{LabelSelector: "colour in (red,green)"}:                        3,
		{FieldSelector: "metadata.name=cm-1"}:                           1,
		{FieldSelector: "metadata.name!=cm-1", LabelSelector: "colour"}: 2,
	} {
		list, err := c.CoreV1().ConfigMaps(ns).List(t.Context(), selector)
		if err != nil || len(list.Items) != want {
			t.Errorf("%+v: %d objects, error %v; want %d", selector, len(list.Items), err, want)
		}
	}
}

func testTable(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	var body []byte
	// The server makes this Service a moment after it is ready.
	eventually(t, "the Service default/kubernetes", func(ctx context.Context) (bool, error) {
		var err error
		body, err = c.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces/default/services/kubernetes").
			SetHeader("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1").DoRaw(ctx)
		return err == nil, nil
	})
	var table metav1.Table
	if err := json.Unmarshal(body, &table); err != nil {
		t.Fatal(err)
	}
	var columns []string
	for _, col := range table.ColumnDefinitions {
		columns = append(columns, col.Name)
	}
	if got, want := strings.Join(columns, " "), "Name Type Cluster-IP External-IP Port(s) Age Selector"; got != want {
		t.Errorf("columns %q, want %q", got, want)
	}
	if len(table.Rows) != 1 || fmt.Sprint(table.Rows[0].Cells[:5]) != "[kubernetes ClusterIP 10.96.0.1 <none> 443/TCP]" {
		t.Errorf("rows %v", table.Rows)
	}
}

func testPatches(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	if _, err := c.CoreV1().Services(ns).Create(t.Context(), service("web"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		kind  types.PatchType
		patch string
		ports int
	}{
		{types.StrategicMergePatchType, `{"spec":{"ports":[{"port":80,"name":"a"},{"port":81,"name":"b"}]}}`, 2},
		{types.MergePatchType, `{"spec":{"ports":[{"port":82}]}}`, 1},
		{types.JSONPatchType, `[{"op":"add","path":"/spec/ports/-","value":{"port":83,"name":"d"}},{"op":"add","path":"/spec/ports/0/name","value":"c"}]`, 2},
	} {
		svc, err := c.CoreV1().Services(ns).Patch(t.Context(), "web", p.kind, []byte(p.patch), metav1.PatchOptions{})
		if err != nil || len(svc.Spec.Ports) != p.ports {
			t.Errorf("%s: %v, error %v; want %d ports", p.kind, svc.Spec.Ports, err, p.ports)
		}
	}
	apply := func(manager string, port int, force bool) error {
		body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"applied"},"spec":{"ports":[{"port":80,"protocol":"TCP","targetPort":%d}]}}`, port)
		_, err := c.CoreV1().Services(ns).Patch(t.Context(), "applied", types.ApplyPatchType, []byte(body), metav1.PatchOptions{FieldManager: manager, Force: &force})
		return err
	}
	if err := apply("one", 8080, false); err != nil {
		t.Fatal(err)
	}
	if err := apply("two", 9090, false); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `"one"`) {
		t.Errorf("apply by another manager: %v, want a conflict with one", err)
	}
	if err := apply("two", 9090, true); err != nil {
		t.Errorf("forced: %v", err)
	}
}

func testDryRun(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	svc, err := c.CoreV1().Services(ns).Create(t.Context(), service("web"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil || svc.UID == "" {
		t.Fatalf("%v, error %v", svc, err)
	}
	if _, err := c.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after a dry run: %v, want not found", err)
	}
}

// boats is a CustomResourceDefinition.
func boats(group string) *apiextensionsv1.CustomResourceDefinition {
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "boats." + group},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: group, Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "boats", Singular: "boat", Kind: "Boat", ListKind: "BoatList", ShortNames: []string{"bt"}},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}},
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
					Type: "object",
					Properties: map[string]apiextensionsv1.JSONSchemaProps{
						"spec": {Type: "object", Description: "what the boat is like", Properties: map[string]apiextensionsv1.JSONSchemaProps{
							"masts": {Type: "integer", Maximum: ptr.To(5.0)},
						}},
						"status": {Type: "object", XPreserveUnknownFields: ptr.To(true)},
					},
				}},
				AdditionalPrinterColumns: []apiextensionsv1.CustomResourceColumnDefinition{{Name: "Masts", Type: "integer", JSONPath: ".spec.masts"}},
			}},
		},
	}
}

func boat(group, name string, masts int64) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": group + "/v1", "kind": "Boat", "metadata": map[string]any{"name": name}, "spec": map[string]any{"masts": masts},
	}}
}

// installBoats makes the CRD and waits until it is served.
func installBoats(t *testing.T, s *apiserver.Server, group string) dynamic.NamespaceableResourceInterface {
	t.Helper()
	config := apitest.Config(t, s, apiserver.Admin())
	crds, err := apiextensions.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), boats(group), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	resource := dyn.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: "boats"})
	eventually(t, "boats", func(ctx context.Context) (bool, error) {
		_, err := resource.List(ctx, metav1.ListOptions{})
		return err == nil, err
	})
	return resource
}

func testCustomResource(t *testing.T, s *apiserver.Server) {
	resource := installBoats(t, s, "sea.example.com").Namespace("default")
	ctx := t.Context()
	if _, err := resource.Create(ctx, boat("sea.example.com", "a", 3), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := resource.Create(ctx, boat("sea.example.com", "b", 9), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("nine masts: %v, want invalid", err)
	}
	c := apitest.Client(t, s, apiserver.Admin())
	eventually(t, "discovery", func(context.Context) (bool, error) {
		groups, err := c.Discovery().ServerGroups()
		if err != nil {
			return false, err
		}
		for _, g := range groups.Groups {
			if g.Name == "sea.example.com" {
				return true, nil
			}
		}
		return false, nil
	})
	for _, document := range []string{"/openapi/v2", "/openapi/v3/apis/sea.example.com/v1"} {
		eventually(t, "description in "+document, func(ctx context.Context) (bool, error) {
			body, err := c.Discovery().RESTClient().Get().AbsPath(document).SetHeader("Accept", "application/json").DoRaw(ctx)
			return strings.Contains(string(body), "what the boat is like"), err
		})
	}
}

func testControllerRuntime(t *testing.T, s *apiserver.Server) {
	ctrl.SetLogger(logr.FromSlogHandler(slog.DiscardHandler))
	const group = "lake.example.com"
	installBoats(t, s, group)
	config := apitest.Config(t, s, apiserver.Admin())
	manager, err := ctrl.NewManager(config, ctrl.Options{Metrics: metricsserver.Options{BindAddress: "0"}, LeaderElection: true, LeaderElectionID: "boats", LeaderElectionNamespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	kind := &unstructured.Unstructured{}
	kind.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: "v1", Kind: "Boat"})
	err = ctrl.NewControllerManagedBy(manager).Named("boats").For(kind).Complete(reconcileFunc(func(ctx context.Context, r ctrl.Request) (ctrl.Result, error) {
		b := kind.DeepCopy()
		if err := manager.GetClient().Get(ctx, r.NamespacedName, b); err != nil {
			return ctrl.Result{}, client.IgnoreNotFound(err)
		}
		if err := unstructured.SetNestedField(b.Object, "afloat", "status", "state"); err != nil {
			return ctrl.Result{}, err
		}
		return ctrl.Result{}, manager.GetClient().Status().Update(ctx, b)
	}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- manager.Start(ctx) }()
	defer func() { cancel(); <-done }()

	direct, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := boat(group, "nutshell", 1)
	b.SetNamespace("default")
	if err := direct.Create(ctx, b); err != nil {
		t.Fatal(err)
	}
	eventually(t, "status set by the reconciler", func(ctx context.Context) (bool, error) {
		err := direct.Get(ctx, client.ObjectKeyFromObject(b), b)
		state, _, _ := unstructured.NestedString(b.Object, "status", "state")
		return state == "afloat", err
	})
}

type reconcileFunc func(context.Context, ctrl.Request) (ctrl.Result, error)

func (f reconcileFunc) Reconcile(ctx context.Context, r ctrl.Request) (ctrl.Result, error) {
	return f(ctx, r)
}

// testNode reads a log from a node's agent.
func testNode(t *testing.T, s *apiserver.Server) {
	ip := netip.MustParseAddr("127.0.0.1")
	cert, err := s.NodeServingCert("node-x", []netip.Addr{ip})
	if err != nil {
		t.Fatal(err)
	}
	agent := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s asks for %s", r.TLS.PeerCertificates[0].Subject.CommonName, r.URL.Path)
	}))
	agent.TLS = agentTLS(cert, s.ClientCAs())
	agent.StartTLS()
	defer agent.Close()

	ctx := t.Context()
	nodes := apitest.Client(t, s, apiserver.Node("node-x")).CoreV1().Nodes()
	node, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-x"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip.String()}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(agent.Listener.Addr().(*net.TCPAddr).Port)
	if _, err := nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := apitest.Client(t, s, apiserver.Node("node-y")).CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("another node changes node-x: %v, want forbidden", err)
	}
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)
	accounts := c.CoreV1().ServiceAccounts(ns)
	if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	_, err = c.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.PodSpec{NodeName: "node-x", Containers: []corev1.Container{{Name: "c", Image: "host"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	log, err := c.CoreV1().Pods(ns).GetLogs("web", &corev1.PodLogOptions{}).DoRaw(ctx)
	if want := apiserver.KubeletClientUser + " asks for /containerLogs/" + ns + "/web/c"; err != nil || string(log) != want {
		t.Errorf("log %q, error %v; want %q", log, err, want)
	}
}

func testOpenAPI(t *testing.T, s *apiserver.Server) {
	c := apitest.Client(t, s, apiserver.Admin()).Discovery()
	paths, err := c.OpenAPIV3().Paths()
	if err != nil {
		t.Fatal(err)
	}
	for _, gv := range []string{"api/v1", "apis/apps/v1", "apis/networking.k8s.io/v1", "apis/apiextensions.k8s.io/v1", "apis/apiregistration.k8s.io/v1", "version"} {
		p := paths[gv]
		if p == nil {
			t.Errorf("no document for %s", gv)
			continue
		}
		for _, kind := range []string{"application/json", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"} {
			if body, err := p.Schema(kind); err != nil || len(body) < 100 {
				t.Errorf("%s as %s: %d bytes, error %v", gv, kind, len(body), err)
			}
		}
		if !strings.Contains(p.ServerRelativeURL(), "hash=") {
			t.Errorf("%s: no hash in %s", gv, p.ServerRelativeURL())
		}
	}
	v2, err := c.OpenAPISchema() // asks for protobuf
	if err != nil || len(v2.GetDefinitions().GetAdditionalProperties()) < 500 {
		t.Errorf("OpenAPI v2: %d definitions, error %v", len(v2.GetDefinitions().GetAdditionalProperties()), err)
	}
}

// agentTLS wants client certificates of the server's authority, as a node's agent does.
func agentTLS(cert tls.Certificate, clients *x509.CertPool) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}
}

func pemOf(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}
