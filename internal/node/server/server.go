// Package server is a node's HTTPS server, the one that the API server asks for
// logs, exec, attach and port-forward: the kubelet's, in kubectl's protocols.
//
// In go requests of clients that the API knows, out come streams of containers.
// It starts and stops nothing.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/node/lifecycle"
)

// Port is where it listens, the kubelet's.
const Port = 10250

// apiServer is who the API server is to nodes.
const apiServer = "kube-apiserver-kubelet-client"

// Server is one node's.
type Server struct {
	Node      string
	Pods      *lifecycle.Manager
	NS        *netns.NS
	Addrs     []netip.Addr
	ClientCAs *x509.CertPool
	// Access answers whether a client other than the API server may do what it
	// asks.
	Access kubernetes.Interface
	Cert   func(node string, ips []netip.Addr) (tls.Certificate, error)
	Logger *slog.Logger

	mu      sync.Mutex
	allowed map[string]time.Time // answers of Access, good until then
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) {
	for {
		err := s.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		s.Logger.Error("the node's HTTPS server ended and is started again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (s *Server) serve(ctx context.Context) error {
	cert, err := s.Cert(s.Node, s.Addrs)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler: s.authorize(s.routes()),
		// Exec and its kin take the connection over, which HTTP/2 has no way to.
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: s.ClientCAs,
			ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug),
	}
	errc := make(chan error, len(s.Addrs))
	for _, a := range s.Addrs {
		l, err := s.NS.Listen(ctx, "tcp", net.JoinHostPort(a.String(), strconv.Itoa(Port)))
		if err != nil {
			srv.Close()
			return err
		}
		go func() { errc <- srv.ServeTLS(l, "", "") }()
	}
	defer srv.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-errc:
		return err
	}
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok")) }) //nolint:errcheck
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	for _, path := range []string{"/exec/{namespace}/{pod}/{container}", "/exec/{namespace}/{pod}/{uid}/{container}"} {
		mux.HandleFunc(path, s.exec)
	}
	for _, path := range []string{"/attach/{namespace}/{pod}/{container}", "/attach/{namespace}/{pod}/{uid}/{container}"} {
		mux.HandleFunc(path, s.attach)
	}
	for _, path := range []string{"/portForward/{namespace}/{pod}", "/portForward/{namespace}/{pod}/{uid}"} {
		mux.HandleFunc(path, s.portForward)
	}
	return mux
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
	for _, p := range s.Pods.Pods() {
		list.Items = append(list.Items, *p)
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(list) //nolint:errcheck // the client has gone
}

// authorize lets the API server and administrators in, and whom the API lets
// use the node's proxy, as the kubelet does.
func (s *Server) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		who := r.TLS.PeerCertificates[0].Subject
		ok, err := s.allows(r, who.CommonName, who.Organization)
		switch {
		case err != nil:
			http.Error(w, "cannot ask the API whether this is allowed: "+err.Error(), http.StatusServiceUnavailable)
		case !ok:
			http.Error(w, "Forbidden (user="+who.CommonName+", verb="+verb(r)+", resource=nodes, subresource="+subresource(r)+")", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (s *Server) allows(r *http.Request, user string, groups []string) (bool, error) {
	if user == apiServer {
		return true, nil
	}
	if s.Access == nil {
		return false, errors.New("there is no way to ask it")
	}
	sub := subresource(r)
	key := user + "\x00" + strings.Join(groups, ",") + "\x00" + verb(r) + "\x00" + sub
	s.mu.Lock()
	until := s.allowed[key]
	s.mu.Unlock()
	if time.Now().Before(until) {
		return true, nil
	}
	sar, err := s.Access.AuthorizationV1().SubjectAccessReviews().Create(r.Context(), &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: user, Groups: append([]string{"system:authenticated"}, groups...),
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb(r), Version: "v1", Resource: "nodes", Subresource: sub, Name: s.Node}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	if sar.Status.Allowed {
		s.mu.Lock()
		if s.allowed == nil || len(s.allowed) > 1000 {
			s.allowed = map[string]time.Time{}
		}
		s.allowed[key] = time.Now().Add(time.Minute)
		s.mu.Unlock()
	}
	return sar.Status.Allowed, nil
}

// verb is the API's word for a method, as the kubelet maps it.
func verb(r *http.Request) string {
	switch r.Method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return "get"
}

func subresource(r *http.Request) string {
	switch {
	case strings.HasPrefix(r.URL.Path, "/healthz"):
		return "healthz"
	case strings.HasPrefix(r.URL.Path, "/pods"):
		return "pods"
	}
	return "proxy"
}
