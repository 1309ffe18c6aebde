// Package lean keeps a long-running process small. Starting up takes much more
// memory and runs much more code than what comes after; Settle gives both back to
// the kernel once it is over. It changes nothing but this process.
package lean

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// GOGC while starting, when nearly everything that is allocated stays, and
// after: the heap of an idle instance grows by half, not to double, before it is
// collected.
const (
	startPercent = 400
	idlePercent  = 50
)

// SettleAfter is how long after it is ready a process may be taken to have
// started up: what goes on in the background is done by then.
const SettleAfter = 3 * time.Second

// Begin sets the garbage collector's pace for starting. Call it first in main.
func Begin() { setPercent(startPercent) }

// Settle sets the garbage collector's pace for good, and gives back to the
// kernel the memory that garbage held, and the pages of the program's own code and
// constants, which the kernel maps again from its cache when they are next
// used. Call it when start-up is over; it takes some tens of milliseconds.
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
