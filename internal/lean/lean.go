// Package lean keeps a long-running process small while it is idle and has
// little to hold, and fast otherwise. Starting up takes much more memory and
// runs much more code than what comes after; both go back to the kernel once it
// is over. After that the garbage collector runs often while there is little to
// look through and little is allocated, when that costs nothing, and seldom
// otherwise. It changes nothing but this process.
package lean

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// GOGC: by how many percent the heap may grow before it is collected.
const (
	// Starting leaves what lasts among the garbage of its making; the less of
	// that there is, the denser the heap for good. Half as much would save some
	// 10 MB of 120, for a sixth more processor time until all is ready.
	startPercent = 100
	busyPercent  = 100
	idlePercent  = 25
)

// A process is busy when it allocates more than busyRate bytes a second, and
// idle again when it allocates less than idleRate, as seen every period. An
// idle instance of one node allocates less than 1 MB a second.
const (
	period   = 5 * time.Second
	busyRate = 4 << 20
	idleRate = 2 << 20
)

// largeHeap is how many bytes of live heap take so long to look through that
// what happens meanwhile is late: with 5,000 Services, a collection at idlePercent
// makes the slowest in a hundred changes of an endpoint take three times as long.
const largeHeap = 96 << 20

// rounds are when Keep settles, counted from when the process is ready: once
// when what goes on in the background after that is mostly done, and once when it is
// surely done.
var rounds = []time.Duration{3 * time.Second, 15 * time.Second}

// Begin sets the garbage collector's pace for starting. Call it first in main.
func Begin() { setPercent(startPercent) }

// Keep looks after the process from when it is ready until ctx ends. It
// returns at once.
func Keep(ctx context.Context, logger *slog.Logger) {
	go func() {
		begin := time.Now()
		for _, after := range rounds {
			if !sleep(ctx, time.Until(begin.Add(after))) {
				return
			}
			settle(logger)
		}
		small, last := true, read(allocs)
		for sleep(ctx, period) {
			now := read(allocs)
			was := small
			small = isSmall(was, float64(now-last)/period.Seconds(), read(live))
			last = now
			switch {
			case was && !small:
				setPercent(busyPercent)
			case small && !was:
				settle(logger)
				last = read(allocs)
			}
		}
	}()
}

// isSmall tells whether a process that was small and idle or not still is,
// when it allocates rate bytes a second and live bytes are in use.
func isSmall(was bool, rate float64, live uint64) bool {
	if was {
		return rate <= busyRate && live <= largeHeap
	}
	return rate <= idleRate && live <= largeHeap*3/4
}

// Metrics of the Go runtime (package runtime/metrics).
const (
	allocs = "/gc/heap/allocs:bytes" // allocated since the process began
	live   = "/gc/heap/live:bytes"   // in use, by the last collection
)

func read(metric string) uint64 {
	sample := []metrics.Sample{{Name: metric}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// sleep waits, and returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func settle(logger *slog.Logger) {
	if err := Settle(); err != nil {
		logger.Warn("memory that is not needed is not given back", "error", err)
	}
}

// Settle sets the garbage collector's pace for idling, and gives back to the
// kernel the memory that garbage held, and the pages of the program's own code and
// constants, which the kernel maps again from its cache when they are next
// used. It takes some tens of milliseconds.
func Settle() error {
	setPercent(idlePercent)
	debug.FreeOSMemory()
	return dropCode()
}

// setPercent sets GOGC unless the environment has.
func setPercent(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// dropCode unmaps the pages of the executable's read-only segments. They are
// clean by definition: nothing is lost.
func dropCode() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	segments, err := readOnly(f, exe)
	if err != nil {
		return err
	}
	for _, s := range segments {
		// The address is the kernel's, of a mapping that lives as long as the process.
		mem := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), s.start)), s.end-s.start)
		if err := unix.Madvise(mem, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("madvise %x-%x: %w", s.start, s.end, err)
		}
	}
	return nil
}

type segment struct{ start, end uintptr }

// readOnly finds the private mappings of file that cannot be written to, in
// the format of /proc/PID/maps (proc_pid_maps(5)).
func readOnly(maps io.Reader, file string) ([]segment, error) {
	var out []segment
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		// address perms offset dev inode pathname
		f := strings.Fields(lines.Text())
		if len(f) < 6 || strings.Join(f[5:], " ") != file || (f[1] != "r-xp" && f[1] != "r--p") {
			continue
		}
		a, b, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(a, 16, 64)
		end, err2 := strconv.ParseUint(b, 16, 64)
		if err1 != nil || err2 != nil || end <= start {
			return nil, fmt.Errorf("maps: cannot read %q", lines.Text())
		}
		out = append(out, segment{uintptr(start), uintptr(end)})
	}
	return out, lines.Err()
}
