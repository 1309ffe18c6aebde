package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// Cleanup deletes the table of that name, DefaultTable if it is empty, from a
// network namespace (nil is the process's own). It is no error if there is
// none. Nothing else is touched.
func Cleanup(ctx context.Context, ns *netns.NS, table string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if table == "" {
		table = DefaultTable
	}
	c, err := dial(ns)
	if err != nil {
		return fmt.Errorf("nft: clean up: %w", err)
	}
	defer c.close()
	b := newBatch(table)
	b.deleteTable()
	if err := c.commit(b); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("nft: clean up: %w", err)
	}
	return nil
}
