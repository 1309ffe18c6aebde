package standalone

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Instance is the record of a running (or killed) instance, kept in its data
// directory as instance.json.
type Instance struct {
	Options Options   `json:"options"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Ready is when everything was up; zero while it starts.
	Ready time.Time `json:"ready,omitzero"`
	// Server is the URL of the API.
	Server string `json:"server"`
}

const (
	recordFile = "instance.json"
	lockFile   = "lock"
	// LogFile is where an instance logs, below its data directory.
	LogFile = "fairway.log"
)

// ErrInUse is what a data directory that a live instance holds is refused with.
var ErrInUse = errors.New("in use")

// Prefix is what all names that the instance of a data directory makes on the
// machine (bridge, namespaces, nftables table) begin with. It depends on the
// directory alone, so that clean-up needs no record.
func Prefix(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
	return "fw-" + hex.EncodeToString(sum[:3])
}

// lock is a held data directory. It goes with the process, whatever ends it.
type lock struct{ f *os.File }

// lockDataDir takes the directory for this process, making it if need be. It
// fails with ErrInUse if another process holds it.
func lockDataDir(dir string) (*lock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		b, _ := os.ReadFile(f.Name())
		f.Close()
		holder := "another process"
		if pid := strings.TrimSpace(string(b)); pid != "" {
			holder = "process " + pid
		}
		return nil, fmt.Errorf("data directory %s is %w by %s: stop it with `fairway down --data-dir %s`, or choose another --data-dir", dir, ErrInUse, holder, dir)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	return &lock{f}, nil
}

func (l *lock) release() { l.f.Close() }

// holder returns the process that holds a data directory, or 0.
func holder(dir string) int {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		return 0
	}
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid
}

// ReadInstance returns the record of a data directory and whether a process
// holds it now. It fails with fs.ErrNotExist if there never was an instance.
func ReadInstance(dir string) (inst Instance, running bool, err error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return inst, false, err
	}
	b, err := os.ReadFile(filepath.Join(abs, recordFile))
	if err != nil {
		return inst, false, err
	}
	if err := json.Unmarshal(b, &inst); err != nil {
		return inst, false, fmt.Errorf("%s: %w", filepath.Join(abs, recordFile), err)
	}
	return inst, holder(abs) != 0, nil
}

// NotRunning words the want of an instance for a person.
func NotRunning(dir string) error {
	return fmt.Errorf("no instance is running in %s: start one with `fairway up` (or say which one with --data-dir)", dir)
}

func writeRecord(dir string, inst Instance) error {
	b, err := json.MarshalIndent(inst, "", "  ")
	if err != nil {
		return err
	}
	return writeFileAtomic(filepath.Join(dir, recordFile), append(b, '\n'), 0o600)
}

// writeFileAtomic replaces a file as a whole, so that a reader or a crash sees
// the old content or the new.
func writeFileAtomic(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
