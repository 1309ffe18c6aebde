package node

import (
	"context"
	"errors"

	"fairway.dev/fairway/internal/node/runtime"
)

// criSource finds the machine's container runtime when one is wanted.
type criSource struct{ opts *Options }

func newCRISource(o *Options) *criSource { return &criSource{opts: o} }

func (s *criSource) get() (runtime.Runtime, error) {
	return nil, &runtime.ImageError{Reason: "ErrImagePull", Err: errors.New(`this machine has no container runtime: only image "host" (its own file system) can run; install one, for example with "apt-get install containerd runc"`)}
}

func (s *criSource) close() {}

func (s *criSource) version() string { return "process://1" }

func cleanupCRI(context.Context, *Options) error { return nil }

// runtimes are all that may hold containers.
func (n *Nodes) runtimes() []runtime.Runtime { return []runtime.Runtime{n.process} }
