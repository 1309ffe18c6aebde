package apiserver_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// TestStopWhileStarting stops servers at all sorts of moments of their start, in one process and one data directory. None
// may take the process with it, keep the directory or spoil it for the next.
func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start := func(ctx context.Context) (*apiserver.Server, error) {
		return apiserver.Start(ctx, apiserver.Options{DataDir: dir, Logger: apitest.Logger(t)})
	}
	stopped := 0
	for _, ms := range []int{0, 30, 60, 100, 150, 200, 250, 300, 400, 500} {
		after := time.Duration(ms) * time.Millisecond
		ctx, cancel := context.WithTimeout(context.Background(), after)
		s, err := start(ctx)
		switch {
		case err == nil:
			<-s.Done() // for ctx ends
			if s.Err() != nil {
				t.Errorf("stopped after %v, with %v", after, s.Err())
			}
		case errors.Is(err, context.DeadlineExceeded):
			stopped++
		default:
			t.Errorf("stopped after %v: %v", after, err)
		}
		cancel()
	}
	if stopped == 0 {
		t.Error("no start was interrupted")
	}
	for range 2 {
		s, err := start(context.Background())
		if err != nil {
			t.Fatalf("after %d starts that were stopped: %v", stopped, err)
		}
		client := apitest.Client(t, s, apiserver.Admin())
		if _, err := client.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		s.Shutdown()
	}
}

// TestStoreStops: a server whose store ends, for whatever reason, ends too, says so and takes nothing with it.
func TestStoreStops(t *testing.T) {
	t.Parallel()
	s, err := apiserver.Start(context.Background(), apiserver.Options{DataDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s.StopStore()
	select {
	case <-s.Done():
	case <-time.After(2 * limit):
		t.Fatalf("the server still runs %v after its store stopped", 2*limit)
	}
	if s.Err() == nil {
		t.Error("a server without a store ended without an error")
	}
}
