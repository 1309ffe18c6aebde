package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/node/runtime/cri"
	"fairway.dev/fairway/internal/node/runtime/process"
)

// criSource finds the machine's container runtime when one is wanted, and
// looks again as long as there is none.
type criSource struct {
	opts *Options

	mu    sync.Mutex
	found *cri.Runtime
	tried time.Time
	err   error
}

func newCRISource(o *Options) *criSource { return &criSource{opts: o} }

// EnvCRISocket names the environment variable with the socket to use where
// Options.CRISocket is empty.
const EnvCRISocket = "FAIRWAY_CRI_SOCKET"

var errNoCRI = errors.New(`this machine has no container runtime, so only image "host" (its own file system) can run; install one, for example: apt-get install containerd runc`)

func (o *Options) criSocket() string {
	switch o.CRISocket {
	case "none":
		return ""
	case "":
		if s := os.Getenv(EnvCRISocket); s != "" {
			return s
		}
		return cri.Find()
	}
	return o.CRISocket
}

func (s *criSource) get() (runtime.Runtime, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.found != nil {
		return s.found, nil
	}
	if s.err != nil && time.Since(s.tried) < 5*time.Second {
		return nil, s.err
	}
	s.tried = time.Now()
	socket := s.opts.criSocket()
	if socket == "" {
		s.err = errNoCRI
		return nil, s.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	rt, err := cri.Connect(ctx, cri.Config{Socket: socket, Prefix: s.opts.Prefix, Logger: s.opts.Logger})
	if err != nil {
		s.err = fmt.Errorf("container runtime: %w", err)
		return nil, s.err
	}
	s.found, s.err = rt, nil
	return rt, nil
}

func (s *criSource) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.found != nil {
		s.found.Close()
		s.found = nil
	}
}

// version is what Nodes say of their runtime.
func (s *criSource) version() string {
	if rt, err := s.get(); err == nil {
		return rt.(*cri.Runtime).Version()
	}
	return process.Scheme + "://1"
}

func cleanupCRI(ctx context.Context, o *Options) error {
	socket := o.criSocket()
	if socket == "" {
		return nil
	}
	if c, err := net.DialTimeout("unix", socket, time.Second); err != nil {
		return nil // nothing runs there
	} else {
		c.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return cri.Cleanup(ctx, cri.Config{Socket: socket, Prefix: o.Prefix, Logger: o.Logger})
}

// runtimes are all that may hold containers.
func (n *Nodes) runtimes() []runtime.Runtime {
	out := []runtime.Runtime{n.process}
	if rt, err := n.cri.get(); err == nil {
		out = append(out, rt)
	}
	return out
}
