package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// file is one file of a volume.
type file struct {
	data []byte
	mode int32
}

// writeAtomic makes dir hold exactly these files, all at once for a reader:
//
//	dir/..2026_01_02_15_04_05.123/   the files
//	dir/..data -> ..2026_…           swapped by a rename
//	dir/key -> ..data/key
//
// which is the layout that upstream's kubelet makes and programs watch for. It
// writes nothing if nothing has changed, and leaves what was there if it fails.
func writeAtomic(dir string, files map[string]file, group *int64) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data := filepath.Join(dir, "..data")
	if same(data, files) {
		return nil
	}
	next, err := os.MkdirTemp(dir, ".."+time.Now().UTC().Format("2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(next) //nolint:errcheck // the first error says more
		}
	}()
	if err := os.Chmod(next, 0o755); err != nil {
		return err
	}
	tops := map[string]bool{}
	for path, f := range files {
		if !inside(path) {
			return fmt.Errorf("path %q: must stay in the volume", path)
		}
		tops[strings.Split(path, "/")[0]] = true
		full := filepath.Join(next, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(f.mode)
		if group != nil {
			mode |= 0o440
		}
		if err := os.WriteFile(full, f.data, mode); err != nil {
			return err
		}
		if group != nil {
			if err := os.Chown(full, -1, int(*group)); err != nil {
				return err
			}
		}
		if err := os.Chmod(full, mode); err != nil { // whatever the umask
			return err
		}
	}
	tmp := filepath.Join(dir, "..data_tmp")
	os.Remove(tmp) //nolint:errcheck // usually there is none
	if err := os.Symlink(filepath.Base(next), tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, data); err != nil {
		return err
	}
	return tidy(dir, tops, filepath.Base(next))
}

// tidy makes the names in dir those of the volume's files and directories, and
// removes all data but the present.
func tidy(dir string, tops map[string]bool, present string) error {
	for top := range tops {
		if _, err := os.Lstat(filepath.Join(dir, top)); os.IsNotExist(err) {
			if err := os.Symlink("..data/"+top, filepath.Join(dir, top)); err != nil {
				return err
			}
		}
	}
	ents, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range ents {
		switch n := e.Name(); {
		case n == "..data", n == present, tops[n]:
		case strings.HasPrefix(n, ".."): // of before, or of a process that was killed here
			errs = append(errs, os.RemoveAll(filepath.Join(dir, n)))
		default:
			os.Remove(filepath.Join(dir, n)) //nolint:errcheck // a name that went; its data is gone already
		}
	}
	return errors.Join(errs...)
}

// same tells whether data holds exactly these files.
func same(data string, files map[string]file) bool {
	n := 0
	root, err := filepath.EvalSymlinks(data)
	if err != nil {
		return false
	}
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, ok := files[rel]
		if !ok || !bytes.Equal(f.data, b) {
			return os.ErrInvalid
		}
		n++
		return nil
	})
	return err == nil && n == len(files)
}
