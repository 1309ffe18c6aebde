package apiserver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/apiserver/pki"
	"fairway.dev/fairway/internal/testenv/apitest"
)

const (
	flunderGroup = "wardle.example.com"
	flunderPath  = "/apis/" + flunderGroup + "/v1"
)

// servingCert returns a certificate for the DNS name of a Service, and the authority that signed it.
func servingCert(t *testing.T, service, ns string) (tls.Certificate, []byte) {
	t.Helper()
	ca, err := pki.LoadOrCreateAuthority(t.TempDir(), "ca", "the extension's own")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Server(service, []string{service + "." + ns + ".svc"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return cert, ca.CertPEM
}

// frontProxy is what an extension server reads from the cluster to know who is the API server.
type frontProxy struct {
	ca    *x509.CertPool
	names []string
}

func readFrontProxy(t *testing.T, c kubernetes.Interface) frontProxy {
	t.Helper()
	var data map[string]string
	eventually(t, "extension-apiserver-authentication", func(ctx context.Context) (bool, error) {
		cm, err := c.CoreV1().ConfigMaps("kube-system").Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
		if err == nil {
			data = cm.Data
		}
		return data["requestheader-client-ca-file"] != "", err
	})
	p := frontProxy{ca: x509.NewCertPool()}
	if !p.ca.AppendCertsFromPEM([]byte(data["requestheader-client-ca-file"])) {
		t.Fatalf("no authority in %v", data)
	}
	for key, into := range map[string]any{"requestheader-allowed-names": &p.names, "requestheader-username-headers": new([]string)} {
		if err := json.Unmarshal([]byte(data[key]), into); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
	}
	return p
}

// extension is an extension API server, as small as it can be. It believes the headers of the front proxy and nobody else's.
func extension(p frontProxy) http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern, format string, args ...func(*http.Request) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			_, err := r.TLS.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: p.ca, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			if name := r.TLS.PeerCertificates[0].Subject.CommonName; err != nil || !slices.Contains(p.names, name) || r.Header.Get("Authorization") != "" {
				http.Error(w, "not the front proxy", http.StatusUnauthorized)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			values := make([]any, len(args))
			for i, arg := range args {
				values[i] = arg(r)
			}
			fmt.Fprintf(w, format, values...)
		})
	}
	user := func(r *http.Request) any {
		return fmt.Sprintf("%s of %s", r.Header.Get("X-Remote-User"), strings.Join(r.Header["X-Remote-Group"], " "))
	}
	answer("GET "+flunderPath, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"wardle.example.com/v1","resources":[
		{"name":"flunders","singularName":"flunder","namespaced":true,"kind":"Flunder","shortNames":["fl"],"verbs":["get","list"]}]}`)
	answer("GET "+flunderPath+"/namespaces/{ns}/flunders", `{"kind":"FlunderList","apiVersion":"wardle.example.com/v1","metadata":{},"items":[
		{"kind":"Flunder","apiVersion":"wardle.example.com/v1","metadata":{"name":"f","namespace":%q,"annotations":{"asked-by":%q,"query":%q}}}]}`,
		func(r *http.Request) any { return r.PathValue("ns") }, user, func(r *http.Request) any { return r.URL.RawQuery })
	const schema = `"com.example.wardle.v1.Flunder":{"description":"Flunder is what the example is about","type":"object",
		"properties":{"spec":{"type":"object","description":"what it shall be"}},
		"x-kubernetes-group-version-kind":[{"group":"wardle.example.com","version":"v1","kind":"Flunder"}]}`
	answer("GET /openapi/v2", `{"swagger":"2.0","info":{"title":"x","version":"1"},"paths":{"`+flunderPath+`/namespaces/{namespace}/flunders":{"get":{
		"operationId":"listFlunder","responses":{"200":{"description":"OK","schema":{"$ref":"#/definitions/com.example.wardle.v1.Flunder"}}}}}},"definitions":{`+schema+`}}`)
	answer("GET /openapi/v3", `{"paths":{"apis/wardle.example.com/v1":{"serverRelativeURL":"/openapi/v3/apis/wardle.example.com/v1?hash=1"}}}`)
	answer("GET /openapi/v3/apis/wardle.example.com/v1", `{"openapi":"3.0.0","info":{"title":"x","version":"1"},"paths":{"`+flunderPath+`/namespaces/{namespace}/flunders":{"get":{
		"operationId":"listFlunder","responses":{"200":{"description":"OK","content":{"application/json":{"schema":{"$ref":"#/components/schemas/com.example.wardle.v1.Flunder"}}}}},
		"x-kubernetes-action":"list","x-kubernetes-group-version-kind":{"group":"wardle.example.com","version":"v1","kind":"Flunder"}}}},"components":{"schemas":{`+schema+`}}}`)
	return mux
}

// TestAggregation registers an extension API server and uses it as its users do.
func TestAggregation(t *testing.T) {
	if !onMachine(t) {
		return
	}
	s := apitest.Start(t)
	c := apitest.Client(t, s, apiserver.Admin())
	ctx, ns := t.Context(), namespace(t, c)
	cert, ca := servingCert(t, "wardle", ns)
	server, port := listenBackend(t, extension(readFrontProxy(t, c)))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}
	server.StartTLS()

	services, err := aggregator.NewForConfig(apitest.Config(t, s, apiserver.Admin()))
	if err != nil {
		t.Fatal(err)
	}
	const name = "v1." + flunderGroup
	available := func(want apiregistrationv1.ConditionStatus, reason string) {
		t.Helper()
		eventually(t, fmt.Sprintf("Available is %s for %s", want, reason), func(ctx context.Context) (bool, error) {
			a, err := services.ApiregistrationV1().APIServices().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			for _, cond := range a.Status.Conditions {
				if cond.Type == apiregistrationv1.Available {
					return cond.Status == want && cond.Reason == reason, fmt.Errorf("it is %s: %s: %s", cond.Status, cond.Reason, cond.Message)
				}
			}
			return false, nil
		})
	}
	createPod(t, c, ns, "wardle")
	createService(t, c, ns, "wardle", "https")
	createSlice(t, c, ns, "wardle", "wardle", true, map[string]int32{"https": port})
	_, err = services.ApiregistrationV1().APIServices().Create(ctx, &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: flunderGroup, Version: "v1", GroupPriorityMinimum: 1000, VersionPriority: 10, CABundle: ca,
			Service: &apiregistrationv1.ServiceReference{Namespace: ns, Name: "wardle", Port: ptr.To[int32](80)},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	available(apiregistrationv1.ConditionTrue, "Passed")

	config := filepath.Join(t.TempDir(), "kubeconfig")
	kubeconfig, err := s.KubeconfigFor(apiserver.Admin(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	k := kubectl{t, config, ""}
	eventually(t, "discovery", func(context.Context) (bool, error) {
		out, ok := k.run("", "api-resources", "--api-group="+flunderGroup, "--cached=false")
		return ok && strings.Contains(out, "flunders"), fmt.Errorf("%s", out)
	})
	k.want(`"query":"limit=7"`, "", "get", "--raw", flunderPath+"/namespaces/"+ns+"/flunders?limit=7")
	k.want(`(?m)^f +<unknown>$`, "", "get", "fl", "-n", ns)
	k.want(`wardle.example.com/v1`, "", "api-versions")
	k.want(`(?m)^`+name+` +`+ns+`/wardle +True `, "", "get", "apiservices")

	// The extension hears who asks, and whoever may not does not get there.
	jane := apitest.Client(t, s, apiserver.Identity{User: "jane", Groups: []string{"devs"}}).Discovery().RESTClient()
	list := func(ctx context.Context) (string, error) {
		// A client cannot say who it is by headers.
		b, err := jane.Get().AbsPath(flunderPath+"/namespaces/"+ns+"/flunders").SetHeader("X-Remote-User", "admin").DoRaw(ctx)
		return string(b), err
	}
	if _, err := list(ctx); !apierrors.IsForbidden(err) {
		t.Errorf("jane, who may not: %v, want forbidden", err)
	}
	createRole(t, c, ns, "jane", rbacv1.PolicyRule{Verbs: []string{"list"}, APIGroups: []string{flunderGroup}, Resources: []string{"flunders"}})
	eventually(t, "jane's flunders", func(ctx context.Context) (bool, error) {
		body, err := list(ctx)
		return strings.Contains(body, `"jane of devs system:authenticated"`), fmt.Errorf("%s %w", body, err)
	})

	eventually(t, "OpenAPI v3", func(context.Context) (bool, error) {
		out, ok := k.run("", "explain", "flunder")
		return ok && strings.Contains(out, "Flunder is what the example is about"), fmt.Errorf("%s", out)
	})
	eventually(t, "OpenAPI v2", func(context.Context) (bool, error) {
		doc, err := c.Discovery().OpenAPISchema()
		if err != nil {
			return false, err
		}
		found := map[string]bool{}
		for _, d := range doc.GetDefinitions().GetAdditionalProperties() {
			found[d.GetName()] = true
		}
		return found["com.example.wardle.v1.Flunder"] && found["io.k8s.api.core.v1.Pod"] &&
			found["io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService"], fmt.Errorf("%d definitions", len(found))
	})

	// What is behind it is looked at every half minute, and when it changes.
	server.Close()
	endpoints := c.DiscoveryV1().EndpointSlices(ns)
	all := metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=wardle"}
	found, err := endpoints.List(ctx, all)
	if err != nil || len(found.Items) == 0 {
		t.Fatal(found, err)
	}
	found.Items[0].Annotations = map[string]string{"changed": "yes"}
	if _, err := endpoints.Update(ctx, &found.Items[0], metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	available(apiregistrationv1.ConditionFalse, "FailedDiscoveryCheck")
	if _, err := list(ctx); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("without its server: %v, want service unavailable", err)
	}
	if err := endpoints.DeleteCollection(ctx, metav1.DeleteOptions{}, all); err != nil {
		t.Fatal(err)
	}
	available(apiregistrationv1.ConditionFalse, "EndpointsNotFound")
	if err := c.CoreV1().Services(ns).Delete(ctx, "wardle", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	available(apiregistrationv1.ConditionFalse, "ServiceNotFound")

	if err := services.ApiregistrationV1().APIServices().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of the group", func(ctx context.Context) (bool, error) {
		_, err := c.Discovery().ServerResourcesForGroupVersion(flunderGroup + "/v1")
		return apierrors.IsNotFound(err), err
	})
}

// createRole gives a user rights in a namespace.
func createRole(t *testing.T, c kubernetes.Interface, ns, user string, rules ...rbacv1.PolicyRule) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: user}
	if _, err := c.RbacV1().Roles(ns).Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RbacV1().RoleBindings(ns).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}
