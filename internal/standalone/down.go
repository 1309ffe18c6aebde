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

// stopProcess asks the holder to end and waits until it is gone, and kills it
// if it does not come to an end. The lock alone would not do: the kernel drops
// it a little before the process is over.
func stopProcess(ctx context.Context, dir string, pid int) error {
	proc, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch process %d: %w", pid, err)
	}
	defer unix.Close(proc)
	// The pid may have gone to somebody else between the look at the lock and
	// here; from now on the descriptor names one process for good.
	if holder(dir) != pid {
		return nil
	}
	signal := func(s unix.Signal) error {
		err := unix.PidfdSendSignal(proc, s, nil, 0)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return err
	}
	if err := signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	deadline := time.Now().Add(stopTimeout)
	for killed := false; ; {
		over, err := exited(proc, 20*time.Millisecond)
		if err != nil {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if over {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) && !killed {
			killed = true
			if err := signal(unix.SIGKILL); err != nil {
				return fmt.Errorf("kill process %d, which did not stop within %s: %w", pid, stopTimeout, err)
			}
		}
	}
}

// exited reports whether the process of a pidfd is over, and waits at most wait
// for it (pidfd_open(2): readable when it is).
func exited(pidfd int, wait time.Duration) (bool, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return n > 0, err
}
