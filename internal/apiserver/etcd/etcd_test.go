package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

func start(t *testing.T, dir string) (*Server, *clientv3.Client) {
	t.Helper()
	s, err := Start(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"http://embedded:2379"},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return s.DialContext(ctx, "tcp", addr)
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return s, client
}

func TestKeepsWhatItStored(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, client := start(t, dir)
	for i := range 100 {
		if _, err := client.Put(ctx, fmt.Sprintf("k%d", i), "v"); err != nil {
			t.Fatal(err)
		}
	}
	client.Close()
	s.Close()
	s.Close() // twice is fine
	if _, err := s.DialContext(ctx, "", ""); err == nil {
		t.Error("dialled a closed store")
	}

	_, client = start(t, dir)
	r, err := client.Get(ctx, "k", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || r.Count != 100 {
		t.Errorf("%d keys, error %v; want 100", r.Count, err)
	}
}

func TestManyConnections(t *testing.T) {
	s, _ := start(t, t.TempDir())
	for range 50 {
		c, err := s.DialContext(t.Context(), "tcp", "anything")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
}
