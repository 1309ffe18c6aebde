package apiserver_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// tell answers with what arrived, and echoes what comes over a websocket.
func tell(name string) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/echo", websocket.Handler(func(ws *websocket.Conn) { _, _ = io.Copy(ws, ws) }))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		client := ""
		if r.TLS != nil {
			client = "https"
			if len(r.TLS.PeerCertificates) > 0 {
				client = r.TLS.PeerCertificates[0].Subject.CommonName
			}
		}
		if r.URL.Path == "/teapot" {
			w.WriteHeader(http.StatusTeapot)
		}
		// The credentials of the client are for the API server alone.
		fmt.Fprintf(w, "%s %s %s %q %s auth=%q", name, r.Method, r.URL.RequestURI(), body, client, r.Header.Get("Authorization"))
	})
	return mux
}

// TestProxy: requests to the proxy subresources of Services, Pods and Nodes reach the real servers behind them.
func TestProxy(t *testing.T) {
	if !onMachine(t) {
		return
	}
	s := apitest.Start(t)
	admin := apitest.Config(t, s, apiserver.Admin())
	c := apitest.Client(t, s, apiserver.Admin())
	ns := namespace(t, c)

	plain, http1 := listenBackend(t, tell("plain"))
	plain.Start()
	secure, https1 := listenBackend(t, tell("secure"))
	secure.StartTLS()
	agent, kubelet := listenBackend(t, tell("agent"))
	cert, err := s.NodeServingCert("n", []netip.Addr{netip.MustParseAddr(backendAddress)})
	if err != nil {
		t.Fatal(err)
	}
	agent.TLS = agentTLS(cert, s.ClientCAs())
	agent.StartTLS()

	createPod(t, c, ns, "pod")
	for _, name := range []string{"web", "none", "unready", "elsewhere"} {
		createService(t, c, ns, name, "http", "https")
	}
	createService(t, c, ns, "single", "")
	behind := map[string]int32{"http": http1, "https": https1}
	createSlice(t, c, ns, "web", "pod", true, behind)
	createSlice(t, c, ns, "unready", "pod", false, behind)
	createSlice(t, c, ns, "elsewhere", "gone", true, behind)
	createSlice(t, c, ns, "single", "pod", true, map[string]int32{"": http1})
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	if node, err = c.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: backendAddress}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = kubelet
	if _, err := c.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}

	in := "/api/v1/namespaces/" + ns
	const nobody = `"reason":"ServiceUnavailable","code":503}`
	requests := []struct {
		method, path, body string
		status             int
		want               string // begins the answer, or is in it if it begins with "…"
	}{
		{"GET", in + "/services/single/proxy/a/b?x=1&y=%2F", "", 200, `plain GET /a/b?x=1&y=%2F ""  auth=""`},
		{"GET", in + "/services/web:http/proxy/", "", 200, `plain GET / ""`},
		{"GET", in + "/services/web:80/proxy/", "", 200, `plain GET / ""`},
		{"GET", in + "/services/http:web:http/proxy/", "", 200, `plain GET / ""`},
		{"GET", in + "/services/https:web:https/proxy/a/b/", "", 200, `secure GET /a/b/ "" https`},
		{"GET", in + "/services/https:web:81/proxy/", "", 200, `secure GET / "" https`},
		{"POST", in + "/services/web:http/proxy/form", "a body", 200, `plain POST /form "a body"`},
		{"PATCH", in + "/services/web:http/proxy/", "p", 200, `plain PATCH / "p"`},
		{"DELETE", in + "/services/web:http/proxy/x", "", 200, `plain DELETE /x`},
		{"GET", in + "/services/web:http/proxy/teapot", "", 418, `plain GET /teapot`},
		{"GET", in + "/services/web:82/proxy/", "", 503, `…no service port 82 found for service \"web\"`},
		{"GET", in + "/services/web/proxy/", "", 503, `…no endpoints available for service \"web\"`},
		{"GET", in + "/services/none:http/proxy/", "", 503, `…no endpoints available for service \"none\"`},
		{"GET", in + "/services/none:http/proxy/", "", 503, "…" + nobody},
		{"GET", in + "/services/unready:http/proxy/", "", 503, `…no endpoints available for service \"unready\"`},
		{"GET", in + "/services/elsewhere:http/proxy/", "", 503, `…no endpoints available for service \"elsewhere\"`},
		{"GET", in + "/services/missing:80/proxy/", "", 404, `…services \"missing\" not found`},
		{"GET", in + "/services/web:https/proxy/", "", 400, `Client sent an HTTP request to an HTTPS server`},

		{"GET", fmt.Sprintf("%s/pods/pod:%d/proxy/a?b=c", in, http1), "", 200, `plain GET /a?b=c ""`},
		{"GET", fmt.Sprintf("%s/pods/https:pod:%d/proxy/", in, https1), "", 200, `secure GET / "" https`},
		{"PUT", fmt.Sprintf("%s/pods/http:pod:%d/proxy/", in, http1), "x", 200, `plain PUT / "x"`},
		{"GET", fmt.Sprintf("%s/pods/missing:%d/proxy/", in, http1), "", 404, `…pods \"missing\" not found`},

		{"GET", "/api/v1/nodes/n/proxy/pods?x=1", "", 200, `agent GET /pods?x=1 "" ` + apiserver.KubeletClientUser},
		{"GET", fmt.Sprintf("/api/v1/nodes/n:%d/proxy/healthz", kubelet), "", 200, `agent GET /healthz "" ` + apiserver.KubeletClientUser},
		{"GET", fmt.Sprintf("/api/v1/nodes/http:n:%d/proxy/", http1), "", 200, `plain GET / ""`},
		{"GET", fmt.Sprintf("/api/v1/nodes/https:n:%d/proxy/", https1), "", 200, `secure GET / "" https`},
		{"GET", "/api/v1/nodes/missing/proxy/", "", 404, `…nodes \"missing\" not found`},
	}
	client, err := rest.HTTPClientFor(admin)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ctx context.Context, method, path, body string) (int, string, error) {
		req, err := http.NewRequestWithContext(ctx, method, s.URL()+path, strings.NewReader(body))
		if err != nil {
			return 0, "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), err
	}
	// The server knows EndpointSlices from a watch.
	for _, name := range []string{"web:http", "single"} {
		eventually(t, "first answer of "+name, func(ctx context.Context) (bool, error) {
			status, body, err := ask(ctx, "GET", in+"/services/"+name+"/proxy/", "")
			return status == 200, fmt.Errorf("%d %s %v", status, body, err)
		})
	}
	for _, r := range requests {
		status, body, err := ask(t.Context(), r.method, r.path, r.body)
		inside, anywhere := strings.CutPrefix(r.want, "…")
		if err != nil || status != r.status || !(strings.HasPrefix(body, r.want) || anywhere && strings.Contains(body, inside)) {
			t.Errorf("%s %s: %d %q, error %v; want %d %q", r.method, r.path, status, body, err, r.status, r.want)
		}
	}

	// A path without its slash is completed, so that relative links work.
	resp, err := client.Transport.RoundTrip(mustRequest(t, s.URL()+in+"/services/single/proxy?x=1"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if where := resp.Header.Get("Location"); resp.StatusCode != http.StatusMovedPermanently || !strings.HasSuffix(where, "/services/single/proxy/?x=1") {
		t.Errorf("without a slash: %s to %q", resp.Status, where)
	}

	for _, path := range []string{
		in + "/services/single/proxy/echo", in + "/services/https:web:https/proxy/echo",
		fmt.Sprintf("%s/pods/pod:%d/proxy/echo", in, http1), "/api/v1/nodes/n/proxy/echo",
	} {
		if got, err := overWebsocket(admin, s.URL(), path, "hello"); err != nil || got != "hello" {
			t.Errorf("websocket to %s: %q, error %v", path, got, err)
		}
	}

	// The right to see a Service is not the right to send requests to it.
	if err := apitest.Client(t, s, apiserver.DNS()).CoreV1().RESTClient().Get().AbsPath(in + "/services/single/proxy/").Do(t.Context()).Error(); err == nil || !strings.Contains(err.Error(), "services/proxy") {
		t.Errorf("without the right to services/proxy: %v", err)
	}
	plain.Close()
	status, body, err := ask(t.Context(), "GET", in+"/services/single/proxy/", "")
	if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(body, "connection refused") {
		t.Errorf("of a server that has gone: %d %q, error %v", status, body, err)
	}
}

func mustRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// overWebsocket sends a message and returns what comes back.
func overWebsocket(config *rest.Config, server, path, message string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	ws, err := websocket.NewConfig("wss://"+u.Host+path, server)
	if err != nil {
		return "", err
	}
	if ws.TlsConfig, err = rest.TLSConfigFor(config); err != nil {
		return "", err
	}
	ws.TlsConfig = &tls.Config{RootCAs: ws.TlsConfig.RootCAs, Certificates: ws.TlsConfig.Certificates, GetClientCertificate: ws.TlsConfig.GetClientCertificate}
	conn, err := ws.DialContext(context.Background())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(message)); err != nil {
		return "", err
	}
	got := make([]byte, len(message))
	_, err = io.ReadFull(conn, got)
	return string(got), err
}
