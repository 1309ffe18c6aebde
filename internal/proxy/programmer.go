package proxy

import (
	"context"
	"iter"

	"fairway.dev/fairway/internal/proxy/state"
)

// Programmer makes the kernel of one node hold a table of frontends. The
// nftables one is internal/proxy/nft.
//
// The proxy calls it from one goroutine at a time. The first calls are
// Configure and then Replace; Apply only follows a Replace that succeeded.
type Programmer interface {
	// Configure sets the node's facts. Before the first Replace it only keeps
	// them; later it programs what differs at once, in one transaction.
	Configure(ctx context.Context, node state.NodeFacts) error

	// Replace makes the kernel hold exactly these frontends. It reads what is
	// there first and changes only what differs, so that it adopts the table
	// of a predecessor without a gap, and corrects what others have done to
	// it. No Key comes twice. It may use several transactions where one would
	// be too large for the kernel; each leaves every frontend either as it was
	// or as it shall be.
	Replace(ctx context.Context, all iter.Seq[*state.Frontend]) error

	// Apply programs a diff in one atomic transaction. After an error the
	// kernel may hold anything; the caller calls Replace, again until it
	// succeeds.
	Apply(ctx context.Context, diff state.Diff) error

	// Drift receives a value when somebody else has changed or deleted what
	// the programmer made; the caller then calls Replace. Several changes may
	// be told as one.
	Drift() <-chan struct{}

	// Close gives up the programmer's sockets. What it programmed stays: traffic
	// goes on while nobody runs.
	Close() error
}
