package apiserver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// limit is how long anything may take on a busy machine.
const limit = 60 * time.Second

// eventually waits until check says yes; its error says why it did not.
func eventually(t *testing.T, what string, check func(ctx context.Context) (bool, error)) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, limit, true, func(ctx context.Context) (bool, error) {
		var ok bool
		ok, last = check(ctx)
		return ok, nil
	})
	if err != nil {
		t.Fatalf("%s: not within %v (last error: %v)", what, limit, last)
	}
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func service(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

func TestAnonymous(t *testing.T) {
	s := apitest.Start(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CACert())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	for path, want := range map[string]int{
		"/livez": 200, "/readyz": 200, "/healthz": 200, "/version": 200,
		"/": 401, "/api": 401, "/apis": 401, "/api/v1/namespaces": 401, "/api/v1/namespaces/default/secrets": 401,
		"/metrics": 401, "/openapi/v2": 401, "/openapi/v3": 401, "/openapi/v3/api/v1": 401, "/debug/pprof/": 401,
		"/nonsense": 401, "/version/": 401, "/readyz/ping": 401, "/.well-known/openid-configuration": 401,
	} {
		resp, err := client.Get(s.URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s without credentials: %d, want %d", path, resp.StatusCode, want)
		}
	}
	for _, verb := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		req, _ := http.NewRequestWithContext(t.Context(), verb, s.URL()+"/api/v1/namespaces", strings.NewReader("{}"))
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 401 {
			t.Errorf("%s without credentials: %d, want 401", verb, resp.StatusCode)
		}
	}
}

// TestRights asks the server what each identity may do.
func TestRights(t *testing.T) {
	s := apitest.Start(t)
	admin := apitest.Client(t, s, apiserver.Admin())
	type can struct {
		verb, group, resource, subresource string
		want                               bool
	}
	for _, tc := range []struct {
		id   apiserver.Identity
		cans []can
	}{
		{apiserver.Admin(), []can{{"delete", "", "secrets", "", true}, {"escalate", "rbac.authorization.k8s.io", "clusterroles", "", true}}},
		{apiserver.LB(), []can{
			{"watch", "", "services", "", true}, {"patch", "", "services", "", true}, {"update", "", "services", "status", true},
			{"list", "discovery.k8s.io", "endpointslices", "", true}, {"list", "", "nodes", "", true},
			{"patch", "fairway.dev", "ippools", "status", true}, {"create", "fairway.dev", "announcers", "", true},
			{"create", "coordination.k8s.io", "leases", "", false}, {"create", "fairway.dev", "ippools", "", false},
			{"create", "apiextensions.k8s.io", "customresourcedefinitions", "", false},
			{"create", "", "services", "", false}, {"delete", "", "services", "", false}, {"get", "", "secrets", "", false},
			{"update", "", "nodes", "", false}, {"create", "", "pods", "", false},
		}},
		{apiserver.DNS(), []can{
			{"watch", "", "services", "", true}, {"watch", "discovery.k8s.io", "endpointslices", "", true}, {"watch", "", "namespaces", "", true},
			{"update", "", "services", "", false}, {"get", "", "secrets", "", false}, {"create", "", "events", "", false},
		}},
		{apiserver.Endpoints(), []can{
			{"watch", "", "pods", "", true}, {"create", "discovery.k8s.io", "endpointslices", "", true}, {"delete", "", "endpoints", "", true},
			{"create", "", "events", "", true}, {"update", "", "services", "", false}, {"update", "", "pods", "", false}, {"get", "", "secrets", "", false},
		}},
		{apiserver.Proxy(), []can{
			{"watch", "", "services", "", true}, {"watch", "discovery.k8s.io", "endpointslices", "", true}, {"get", "", "nodes", "", true},
			{"update", "", "services", "", false}, {"get", "", "secrets", "", false},
		}},
		{apiserver.Scheduler(), []can{{"create", "", "pods", "binding", true}, {"delete", "", "services", "", false}}},
		{apiserver.Node("node-1"), []can{
			{"watch", "", "services", "", true}, {"create", "", "nodes", "", true}, {"create", "", "events", "", true},
			{"delete", "", "services", "", false}, {"list", "", "secrets", "", false},
		}},
		{apiserver.Controller("deployment-controller"), []can{{"create", "apps", "replicasets", "", true}, {"get", "", "secrets", "", false}}},
		{apiserver.Identity{User: "nobody"}, []can{{"list", "", "pods", "", false}, {"get", "", "services", "", false}}},
	} {
		for _, c := range tc.cans {
			review, err := admin.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
				Spec: authorizationv1.SubjectAccessReviewSpec{
					User: tc.id.User, Groups: append(tc.id.Groups, "system:authenticated"),
					ResourceAttributes: &authorizationv1.ResourceAttributes{
						Namespace: "default", Verb: c.verb, Group: c.group, Resource: c.resource, Subresource: c.subresource,
					},
				},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if review.Status.Allowed != c.want {
				t.Errorf("%s: %s %s/%s %s: allowed %v, want %v (%s)", tc.id.User, c.verb, c.group, c.resource, c.subresource, review.Status.Allowed, c.want, review.Status.Reason)
			}
		}
		// Its lease is the one thing the load balancer may do in one namespace only.
		if tc.id.User == apiserver.LB().User {
			leases := apitest.Client(t, s, tc.id).CoordinationV1().Leases("kube-system")
			for name, want := range map[string]bool{"fairway-lb": true, "other": false} {
				if _, err := leases.Get(t.Context(), name, metav1.GetOptions{}); apierrors.IsNotFound(err) != want {
					t.Errorf("%s gets the lease %s: %v", tc.id.User, name, err)
				}
			}
		}
		// The certificate makes its bearer that user and no other.
		me, err := apitest.Client(t, s, tc.id).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil || me.Status.UserInfo.Username != tc.id.User {
			t.Errorf("%s is %v (error %v)", tc.id.User, me.Status.UserInfo.Username, err)
		}
	}
}

// resources are those that the server has to have, by group version.
var resources = map[string]string{
	"v1": `namespaces namespaces/status namespaces/finalize nodes nodes/status nodes/proxy pods pods/status pods/binding pods/eviction pods/log
		pods/exec pods/attach pods/portforward pods/proxy pods/ephemeralcontainers podtemplates services services/status services/proxy
		endpoints events configmaps secrets serviceaccounts serviceaccounts/token replicationcontrollers replicationcontrollers/scale
		limitranges resourcequotas resourcequotas/status`,
	"apps/v1": `deployments deployments/status deployments/scale replicasets replicasets/status replicasets/scale statefulsets
		statefulsets/status statefulsets/scale daemonsets daemonsets/status controllerrevisions`,
	"batch/v1":                        "jobs jobs/status cronjobs cronjobs/status",
	"autoscaling/v2":                  "horizontalpodautoscalers horizontalpodautoscalers/status",
	"policy/v1":                       "poddisruptionbudgets poddisruptionbudgets/status",
	"discovery.k8s.io/v1":             "endpointslices",
	"networking.k8s.io/v1":            "ingresses ingresses/status ingressclasses networkpolicies ipaddresses servicecidrs servicecidrs/status",
	"coordination.k8s.io/v1":          "leases",
	"events.k8s.io/v1":                "events",
	"rbac.authorization.k8s.io/v1":    "roles rolebindings clusterroles clusterrolebindings",
	"authentication.k8s.io/v1":        "tokenreviews selfsubjectreviews",
	"authorization.k8s.io/v1":         "subjectaccessreviews selfsubjectaccessreviews localsubjectaccessreviews selfsubjectrulesreviews",
	"apiextensions.k8s.io/v1":         "customresourcedefinitions customresourcedefinitions/status",
	"admissionregistration.k8s.io/v1": "validatingwebhookconfigurations mutatingwebhookconfigurations validatingadmissionpolicies",
	"apiregistration.k8s.io/v1":       "apiservices",
}

func TestResources(t *testing.T) {
	s := apitest.Start(t)
	client := apitest.Client(t, s, apiserver.Admin())
	for gv, names := range resources {
		list, err := client.Discovery().ServerResourcesForGroupVersion(gv)
		if err != nil {
			t.Errorf("%s: %v", gv, err)
			continue
		}
		have := map[string]bool{}
		for _, r := range list.APIResources {
			have[r.Name] = true
		}
		for _, name := range strings.Fields(names) {
			if !have[name] {
				t.Errorf("%s has no %s", gv, name)
			}
		}
	}
	v, err := client.Discovery().ServerVersion()
	if err != nil || v.GitVersion != apiserver.KubernetesVersion()+"+fairway" {
		t.Errorf("version %v, error %v", v, err)
	}
}

func TestKubernetesService(t *testing.T) {
	t.Parallel()
	s := apitest.Start(t, func(o *apiserver.Options) { o.AdvertiseAddress = netip.MustParseAddr("192.0.2.9") })
	client := apitest.Client(t, s, apiserver.Admin())
	u, _ := url.Parse(s.URL())
	eventually(t, "endpoint of default/kubernetes", func(ctx context.Context) (bool, error) {
		svc, err := client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		slice, err := client.DiscoveryV1().EndpointSlices("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return svc.Spec.ClusterIP == "10.96.0.1" && len(slice.Endpoints) == 1 && slice.Endpoints[0].Addresses[0] == "192.0.2.9" &&
			fmt.Sprint(*slice.Ports[0].Port) == u.Port(), nil
	})
	// Whoever takes it away gets it back.
	if err := client.CoreV1().Services("default").Delete(t.Context(), "kubernetes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "default/kubernetes back again", func(ctx context.Context) (bool, error) {
		svc, err := client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		return err == nil && svc.Spec.ClusterIP == "10.96.0.1", err
	})
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	open := func() (*apiserver.Server, kubernetes.Interface) {
		s, err := apiserver.Start(context.Background(), apiserver.Options{DataDir: dir, Logger: apitest.Logger(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Shutdown)
		return s, apitest.Client(t, s, apiserver.Admin())
	}
	s, client := open()
	if _, err := apiserver.Start(ctx, apiserver.Options{DataDir: dir}); err == nil || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("second server in the same directory: %v", err)
	}
	u, _ := url.Parse(s.URL())
	if _, err := apiserver.Start(ctx, apiserver.Options{DataDir: t.TempDir(), Listen: []string{u.Host}}); err == nil || !strings.Contains(err.Error(), "another program has that port") {
		t.Errorf("second server on the same port: %v", err)
	}
	svc, err := client.CoreV1().Services("default").Create(ctx, service("web"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := client.CoreV1().ServiceAccounts("default").CreateToken(ctx, "robot", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ca := string(s.CACert())
	s.Shutdown()
	s.Shutdown() // twice is fine
	if s.Err() != nil {
		t.Errorf("stopped with %v", s.Err())
	}

	s, client = open()
	again, err := client.CoreV1().Services("default").Get(ctx, "web", metav1.GetOptions{})
	if err != nil || again.Spec.ClusterIP != svc.Spec.ClusterIP || again.UID != svc.UID {
		t.Errorf("after a restart: %v %v, want ClusterIP %s", again.Spec.ClusterIP, err, svc.Spec.ClusterIP)
	}
	if string(s.CACert()) != ca {
		t.Error("another certificate authority after a restart")
	}
	robot, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL(), BearerToken: token.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAData: s.CACert()}})
	if err != nil {
		t.Fatal(err)
	}
	// The token says who it is; what it may do nobody has said.
	if _, err := robot.CoreV1().Services("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a token of before the restart: %v, want forbidden", err)
	}
}

// TestTwoServers runs two servers on one etcd, as an outside one.
func TestTwoServers(t *testing.T) {
	etcd := outsideEtcd(t)
	pki := t.TempDir()
	start := func(advertise string) *apiserver.Server {
		return apitest.Start(t, func(o *apiserver.Options) {
			o.EtcdServers, o.PKIDir = []string{etcd}, pki
			o.AdvertiseAddress = netip.MustParseAddr(advertise)
		})
	}
	a, b := start("192.0.2.1"), start("192.0.2.2")
	clientA, clientB := apitest.Client(t, a, apiserver.Admin()), apitest.Client(t, b, apiserver.Admin())
	ctx := t.Context()

	if _, err := clientA.CoreV1().ConfigMaps("default").Create(ctx, configMap("shared"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := clientB.CoreV1().ConfigMaps("default").Get(ctx, "shared", metav1.GetOptions{}); err != nil {
		t.Errorf("what one stored the other has not: %v", err)
	}
	// Both give out addresses at the same time.
	type result struct {
		ip  string
		err error
	}
	const each = 50
	results := make(chan result, 2*each)
	for i, client := range []kubernetes.Interface{clientA, clientB} {
		go func() {
			for n := range each {
				svc, err := client.CoreV1().Services("default").Create(ctx, service(fmt.Sprintf("s-%d-%d", i, n)), metav1.CreateOptions{})
				results <- result{svc.Spec.ClusterIP, err}
			}
		}()
	}
	seen := map[string]bool{}
	for range 2 * each {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		if seen[r.ip] {
			t.Fatalf("%s was given out twice", r.ip)
		}
		seen[r.ip] = true
	}
	endpoints := func(want ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("endpoints %v", want), func(ctx context.Context) (bool, error) {
			slice, err := clientA.DiscoveryV1().EndpointSlices("default").Get(ctx, "kubernetes", metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			have := map[string]bool{}
			for _, e := range slice.Endpoints {
				have[e.Addresses[0]] = true
			}
			for _, w := range want {
				if !have[w] {
					return false, fmt.Errorf("have %v", have)
				}
			}
			return len(have) == len(want), nil
		})
	}
	endpoints("192.0.2.1", "192.0.2.2")
	b.Shutdown()
	endpoints("192.0.2.1")
}

// outsideEtcd runs an etcd on loopback and returns its URL.
func outsideEtcd(t *testing.T) string {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.LogLevel = "panic"
	free := func() url.URL {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return url.URL{Scheme: "http", Host: l.Addr().String()}
	}
	client, peer := free(), free()
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(limit):
		t.Fatal("etcd does not start")
	}
	return client.String()
}

func TestListenLater(t *testing.T) {
	s := apitest.Start(t, func(o *apiserver.Options) { o.SANs = []string{"127.0.0.5"} })
	u, _ := url.Parse(s.URL())
	later := "127.0.0.5:" + u.Port()
	if err := s.Listen(later); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CACert())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + later + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "ok" {
		t.Errorf("answer %q", body)
	}
}
