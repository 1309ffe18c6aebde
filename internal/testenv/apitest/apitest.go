// Package apitest starts a real API server for tests. It is apart from
// testenv because whoever imports it links all of Kubernetes' API server.
package apitest

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/apiserver"
)

// startLimit is how long a server may take to be ready on a busy machine.
const startLimit = 2 * time.Minute

// Start starts a server in a fresh data directory, on a free loopback port,
// and stops it when the test ends. Each edit may change the options first.
func Start(t testing.TB, edits ...func(*apiserver.Options)) *apiserver.Server {
	t.Helper()
	o := apiserver.Options{DataDir: t.TempDir(), Logger: Logger(t)}
	for _, edit := range edits {
		edit(&o)
	}
	// The server outlives startCtx; it stops at the test's end, not at the limit.
	ctx, cancel := context.WithCancel(context.Background())
	limit := time.AfterFunc(startLimit, cancel)
	s, err := apiserver.Start(ctx, o)
	if err != nil {
		cancel()
		t.Fatalf("start the API server: %v", err)
	}
	if !limit.Stop() {
		t.Fatalf("the API server took longer than %v to start", startLimit)
	}
	t.Cleanup(func() {
		cancel()
		<-s.Done()
	})
	return s
}

// Logger returns a logger that prints warnings and errors, or with
// FAIRWAY_TEST_DEBUG set everything. It does not write to t: the
// server's goroutines may log when the test is already over.
func Logger(t testing.TB) *slog.Logger {
	level := slog.LevelError
	if os.Getenv("FAIRWAY_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("test", t.Name())
}

// Config returns a client configuration for id.
func Config(t testing.TB, s *apiserver.Server, id apiserver.Identity) *rest.Config {
	t.Helper()
	config, err := s.ClientConfig(id)
	if err != nil {
		t.Fatalf("client configuration for %s: %v", id.User, err)
	}
	return config
}

// Client returns a client for id, such as apiserver.Admin().
func Client(t testing.TB, s *apiserver.Server, id apiserver.Identity) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(Config(t, s, id))
	if err != nil {
		t.Fatalf("client for %s: %v", id.User, err)
	}
	return client
}
