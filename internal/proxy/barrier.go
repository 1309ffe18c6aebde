package proxy

import (
	"context"
	"errors"
)

// ErrStopped is what a Barrier returns when the proxy ends before it is through.
var ErrStopped = errors.New("the proxy has stopped")

// Barrier returns when the kernel holds all that the Source has told until
// now. It waits for as long as programming fails. It may be called from any
// goroutine, while Run runs.
func (p *Proxy) Barrier(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case p.barriers <- done:
	case <-p.stopped:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-p.stopped:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}
