// Package server is a node's HTTPS server, the one that the API server asks for
// logs, exec, attach and port-forward: the kubelet's of kubectl's protocols.
//
// In go requests of clients that the API knows, out come streams of containers.
// It starts and stops nothing.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/netip"

	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/node/lifecycle"
)

// Port is where it listens, the kubelet's.
const Port = 10250

// Server is one node's.
type Server struct {
	Node      string
	Pods      *lifecycle.Manager
	NS        *netns.NS
	Addrs     []netip.Addr
	ClientCAs *x509.CertPool
	// Access answers whether a client may do what it asks.
	Access kubernetes.Interface
	Cert   func(node string, ips []netip.Addr) (tls.Certificate, error)
	Logger *slog.Logger
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) { <-ctx.Done() }
