package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/node/lifecycle"
)

func TestParseLogOptions(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	for _, test := range []struct {
		query string
		want  v1.PodLogOptions
		err   string
	}{
		{"", v1.PodLogOptions{}, ""},
		{"follow=true&previous=true&timestamps=1", v1.PodLogOptions{Follow: true, Previous: true, Timestamps: true}, ""},
		{"tailLines=0&limitBytes=10&sinceSeconds=60", v1.PodLogOptions{TailLines: ptr.To(int64(0)), LimitBytes: ptr.To(int64(10)), SinceSeconds: ptr.To(int64(60))}, ""},
		{"sinceTime=2026-01-02T03:04:05Z&stream=Stderr", v1.PodLogOptions{SinceTime: &at, Stream: ptr.To("Stderr")}, ""},
		{"tailLines=-1", v1.PodLogOptions{}, `tailLines: "-1" is not a number from 0`},
		{"limitBytes=many", v1.PodLogOptions{}, `limitBytes: "many"`},
		{"follow=maybe", v1.PodLogOptions{}, `follow: "maybe" is neither true nor false`},
		{"sinceTime=yesterday", v1.PodLogOptions{}, "sinceTime: "},
	} {
		q, err := url.ParseQuery(test.query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseLogOptions(q)
		switch {
		case test.err != "":
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: error %v, want %q", test.query, err, test.err)
			}
		case err != nil || !reflect.DeepEqual(*got, test.want):
			t.Errorf("%s: %+v, %v", test.query, got, err)
		}
	}
}

func TestLogOptions(t *testing.T) {
	at := metav1.NewTime(time.Now().Add(-time.Hour))
	o := logOptions(&v1.PodLogOptions{Follow: true, Timestamps: true, TailLines: ptr.To(int64(3)), SinceTime: &at, SinceSeconds: ptr.To(int64(1))})
	if !o.Follow || !o.Timestamp || *o.TailLines != 3 || !o.Since.Equal(at.Time) {
		t.Errorf("%+v", o)
	}
	if ago := time.Since(logOptions(&v1.PodLogOptions{SinceSeconds: ptr.To(int64(3600))}).Since); ago < time.Hour || ago > 2*time.Hour {
		t.Errorf("the last hour begins %v ago", ago)
	}
	if o := logOptions(&v1.PodLogOptions{}); !o.Since.IsZero() {
		t.Errorf("all of it begins at %v", o.Since)
	}
}

func TestVerbs(t *testing.T) {
	for _, test := range [][4]string{
		{"GET", "/exec/ns/p/c", "get", "proxy"}, {"POST", "/exec/ns/p/c", "create", "proxy"}, {"PUT", "/x", "update", "proxy"}, {"PATCH", "/x", "patch", "proxy"},
		{"DELETE", "/x", "delete", "proxy"}, {"GET", "/healthz", "get", "healthz"}, {"GET", "/pods", "get", "pods"}, {"GET", "/containerLogs/ns/p/c", "get", "proxy"},
	} {
		r := httptest.NewRequest(test[0], test[1], nil)
		if v, s := verb(r), subresource(r); v != test[2] || s != test[3] {
			t.Errorf("%s %s: %s nodes/%s", test[0], test[1], v, s)
		}
	}
}

// Whom the server lets in, and how often it asks.
func TestAuthorize(t *testing.T) {
	access := fake.NewClientset()
	asked, broken := 0, false
	access.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		asked++
		if broken {
			return true, nil, errors.New("no API here")
		}
		r := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		at := r.Spec.ResourceAttributes
		r.Status.Allowed = r.Spec.User == "friend" && at.Resource == "nodes" && at.Name == "node-1" && at.Verb == "get" && at.Subresource == "pods" && len(r.Spec.Groups) == 2
		return true, r, nil
	})
	s := &Server{Node: "node-1", Access: access, Pods: lifecycle.New(lifecycle.Config{}), Logger: slog.New(slog.DiscardHandler)}
	h := s.authorize(s.routes())
	ask := func(user, method, path string) int {
		r := httptest.NewRequest(method, path, nil)
		r.TLS = &tls.ConnectionState{}
		if user != "" {
			r.TLS.PeerCertificates = []*x509.Certificate{{Subject: pkix.Name{CommonName: user, Organization: []string{"team"}}}}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	for _, test := range []struct {
		user, method, path string
		code, asked        int
	}{
		{"", "GET", "/pods", http.StatusUnauthorized, 0},
		{apiServer, "GET", "/pods", http.StatusOK, 0},
		{"friend", "GET", "/pods", http.StatusOK, 1},
		{"friend", "GET", "/pods", http.StatusOK, 1}, // remembered
		{"friend", "POST", "/exec/ns/p/c", http.StatusForbidden, 2},
		{"mallory", "GET", "/pods", http.StatusForbidden, 3},
		{"mallory", "GET", "/pods", http.StatusForbidden, 4}, // a refusal is not
		{apiServer, "GET", "/containerLogs/ns/p/c", http.StatusNotFound, 4},
		{apiServer, "GET", "/containerLogs/ns/p/c?tailLines=x", http.StatusBadRequest, 4},
		{apiServer, "POST", "/exec/ns/p/c", http.StatusNotFound, 4},
		{apiServer, "POST", "/portForward/ns/p", http.StatusNotFound, 4},
	} {
		if code := ask(test.user, test.method, test.path); code != test.code || asked != test.asked {
			t.Errorf("%s %s %s: %d after %d questions, want %d after %d", test.user, test.method, test.path, code, asked, test.code, test.asked)
		}
	}
	broken = true
	if code := ask("mallory", "GET", "/pods"); code != http.StatusServiceUnavailable {
		t.Errorf("without the API: %d", code)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/pods", nil))
	if w.Code != http.StatusUnauthorized {
		t.Errorf("without TLS: %d", w.Code)
	}
}

// Sizes of a terminal go on until either side ends.
func TestSizes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	in := make(chan remotecommand.TerminalSize)
	out := sizes(ctx, in)
	in <- remotecommand.TerminalSize{Width: 80, Height: 24}
	if got := <-out; got.Col != 80 || got.Row != 24 {
		t.Errorf("%+v", got)
	}
	cancel()
	if _, more := <-out; more {
		t.Error("goes on after its end")
	}
	if sizes(ctx, nil) != nil {
		t.Error("sizes out of nothing")
	}
}
