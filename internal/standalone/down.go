package standalone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/console"
)

// stopTimeout bounds how long an instance may take to stop its Pods and parts.
const stopTimeout = 60 * time.Second

// Down stops the instance of a data directory and removes what it made on the
// machine, also if it was killed before. With purge the data directory goes
// too. That none runs is not an error: the clean-up is done all the same.
func Down(ctx context.Context, dir string, purge bool, p *console.Printer) error {
	if err := requireRoot("down"); err != nil {
		return err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		p.Printf("Nothing to do: there is no %s.\n", dir)
		return nil
	}
	inst, _, err := ReadInstance(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not the data directory of an instance: it has no %s", dir, recordFile)
	}
	if err != nil {
		return err
	}
	// The record is of a start that had checked them.
	network, err := inst.Options.Complete()
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(dir, recordFile), err)
	}
	inst.Options.DataDir = dir
	if pid := holder(dir); pid != 0 {
		step := p.Start("Stop")
		if err := stopProcess(ctx, dir, pid); err != nil {
			step.Fail(err)
			return err
		}
		step.Done("process %d", pid)
	}
	held, err := lockDataDir(dir)
	if err != nil {
		return err
	}
	defer held.release()
	step := p.Start("Clean up")
	if err := cleanup(ctx, inst.Options, network); err != nil {
		step.Fail(err)
		return err
	}
	step.Done("namespaces, links and rules of %s", Prefix(dir))
	if purge {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("--purge: %w", err)
		}
		p.Printf("  Removed %s\n", dir)
	}
	return nil
}

// stopProcess asks the holder to end and waits until the lock is free, and
// kills it if it does not come to an end.
func stopProcess(ctx context.Context, dir string, pid int) error {
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	deadline := time.Now().Add(stopTimeout)
	for killed := false; holder(dir) == pid; {
		if time.Now().After(deadline) && !killed {
			killed = true
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d, which did not stop within %s: %w", pid, stopTimeout, err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
