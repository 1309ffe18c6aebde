// Package etcd runs etcd inside the process: one member, no ports, no paths.
//
// In goes a directory; out comes a store that survives kill -9 (every write is
// fsynced before it is answered) and a dialer that reaches it. Clients connect
// over socket pairs, so nobody outside the process can. It knows nothing of
// Kubernetes.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"google.golang.org/grpc"
)

const (
	// tick and electionTicks set how long the only member waits before it
	// elects itself: two to three ticks. There is nobody to wait for.
	tick          = 25 * time.Millisecond
	electionTicks = 2
	// quota is how large the database may grow before it takes no more writes.
	quota = 8 << 30
	// walSegment is what the write-ahead log allocates ahead; etcd's own 64 MB
	// are meant for machines that do nothing else.
	walSegment = 8 << 20
	// maxRequest is the largest write, as etcd's own default.
	maxRequest = 1536 * 1024
)

func init() { wal.SegmentSizeBytes = walSegment }

// Server is a running etcd member.
type Server struct {
	etcd     *etcdserver.EtcdServer
	grpc     *grpc.Server
	listener *pairListener
	served   chan struct{}
	closing  sync.Once
}

// Start opens or makes the store in dir and returns when it takes writes.
// Only one process may have dir open; Start waits for nobody and expects the caller to
// hold a lock.
func Start(ctx context.Context, dir string, logger *slog.Logger) (*Server, error) {
	// Never dialled: a member cannot be without a peer URL.
	self, err := types.NewURLs([]string{"http://localhost:2380"})
	if err != nil {
		return nil, err
	}
	const name = "fairway"
	member, err := etcdserver.NewServer(config.ServerConfig{
		Name:                        name,
		ClientURLs:                  self,
		PeerURLs:                    self,
		DataDir:                     filepath.Clean(dir),
		InitialPeerURLsMap:          types.URLsMap{name: self},
		InitialClusterToken:         name,
		NewCluster:                  true,
		TickMs:                      uint(tick / time.Millisecond),
		ElectionTicks:               electionTicks,
		InitialElectionTickAdvance:  true,
		SnapshotCount:               etcdserver.DefaultSnapshotCount,
		SnapshotCatchUpEntries:      etcdserver.DefaultSnapshotCatchUpEntries,
		MaxSnapFiles:                2,
		MaxWALFiles:                 2,
		QuotaBackendBytes:           quota,
		MaxTxnOps:                   2048,
		MaxRequestBytes:             maxRequest,
		MaxConcurrentStreams:        1 << 20,
		AuthToken:                   "simple",
		BcryptCost:                  10,
		TokenTTL:                    300,
		PreVote:                     true,
		CompactionBatchLimit:        1000,
		CompactionSleepInterval:     10 * time.Millisecond,
		WarningApplyDuration:        500 * time.Millisecond,
		WarningUnaryRequestDuration: time.Second,
		StrictReconfigCheck:         true,
		MaxLearners:                 1,
		V2Deprecation:               config.V2DeprDefault,
		ServerFeatureGate:           features.NewDefaultServerFeatureGate(name, zapLogger(logger)),
		Metrics:                     "basic",
		Logger:                      zapLogger(logger),
	})
	if err != nil {
		return nil, fmt.Errorf("open the store in %s: %w", dir, err)
	}
	member.Start()
	s := &Server{
		etcd:     member,
		grpc:     v3rpc.Server(member, nil, nil, grpc.ReadBufferSize(8<<10), grpc.WriteBufferSize(8<<10), grpc.SharedWriteBuffer(true)),
		listener: newPairListener(),
		served:   make(chan struct{}),
	}
	go func() {
		defer close(s.served)
		_ = s.grpc.Serve(s.listener)
	}()
	select {
	case <-member.ReadyNotify():
		return s, nil
	case <-member.StopNotify():
		s.Close()
		return nil, fmt.Errorf("open the store in %s: it stopped while it started", dir)
	case <-ctx.Done():
		s.Close()
		return nil, ctx.Err()
	}
}

// DialContext opens a connection to the store. Network and address do not
// matter. It may be called by several goroutines at once.
func (s *Server) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return s.listener.dial(ctx)
}

// Stopped is closed when the store has stopped, for whatever reason.
func (s *Server) Stopped() <-chan struct{} { return s.etcd.StopNotify() }

// Close stops the store and waits until its files are closed. It may be called
// more than once.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.grpc.Stop()
		<-s.served
		s.etcd.Stop()
	})
	return nil
}

// errClosed is what a dial gets after Close.
var errClosed = errors.New("the embedded store is closed")
