package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// mountpoints makes the places where volumes are to appear and the machine has
// nothing: empty files and directories in its own file system, since that is
// what containers of image "host" see. They are recorded before they are made
// and stay until Cleanup, because removing one would unmount what other
// containers have there.
type mountpoints struct {
	mu   sync.Mutex
	file string
	made []string // outer before inner
}

func openMountpoints(file string) *mountpoints {
	m := &mountpoints{file: file}
	if data, err := os.ReadFile(file); err == nil {
		json.Unmarshal(data, &m.made) //nolint:errcheck // written by save
	}
	return m
}

// ensure makes target exist, as a directory or a file; keep records what was
// made. The calling thread may be in a container's mount namespace: the file
// systems are the same.
func (m *mountpoints) ensure(target string, dir, keep bool) error {
	fi, err := os.Stat(target)
	if err == nil {
		if fi.IsDir() != dir {
			return fmt.Errorf("%s is a directory: %t, what is to be mounted there: %t; they must be alike", target, fi.IsDir(), dir)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var missing []string
	for p := filepath.Clean(target); p != "/"; p = filepath.Dir(p) {
		if _, err := os.Lstat(p); err == nil {
			break
		}
		missing = append(missing, p)
	}
	slices.Reverse(missing)
	if keep {
		m.made = append(m.made, missing...)
		if err := m.save(); err != nil {
			return err
		}
	}
	for i, p := range missing {
		if i < len(missing)-1 || dir {
			err = os.Mkdir(p, 0o755)
		} else {
			var f *os.File
			if f, err = os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
				f.Close()
			}
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a mount point: %w", err)
		}
	}
	return nil
}

func (m *mountpoints) save() error {
	data, err := json.Marshal(m.made)
	if err != nil {
		return err
	}
	return os.WriteFile(m.file, data, 0o600)
}

// removeAll takes away what was made and is empty still.
func (m *mountpoints) removeAll() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range slices.Backward(m.made) {
		if fi, err := os.Lstat(p); err == nil && (fi.IsDir() || fi.Size() == 0) {
			os.Remove(p) //nolint:errcheck // not empty: somebody uses it, it stays
		}
	}
	m.made = nil
	return nil
}
