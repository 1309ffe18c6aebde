package volumes

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/utils/ptr"
)

// names are those in a directory.
func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		out = append(out, e.Name())
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func files(pairs ...string) map[string]file {
	out := map[string]file{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = file{[]byte(pairs[i+1]), 0o644}
	}
	return out
}

func TestWriteAtomic(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	write := func(f map[string]file) string {
		t.Helper()
		if err := writeAtomic(dir, f, nil); err != nil {
			t.Fatal(err)
		}
		to, err := os.Readlink(dir + "/..data")
		if err != nil {
			t.Fatal(err)
		}
		for path, file := range f {
			if got := read(t, filepath.Join(dir, path)); got != string(file.data) {
				t.Errorf("%s: %q", path, got)
			}
		}
		// Nothing but the files, ..data and what it points to.
		want := []string{to, "..data"}
		for path := range f {
			if top := strings.Split(path, "/")[0]; !slices.Contains(want, top) {
				want = append(want, top)
			}
		}
		got := names(t, dir)
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("there is %v, want %v", got, want)
		}
		return to
	}
	first := write(files("a", "1", "b", "2", "deep/c", "3"))
	// A reader that has the directory of one moment sees all of that moment.
	moment, err := os.OpenRoot(dir + "/..data")
	if err != nil {
		t.Fatal(err)
	}
	defer moment.Close()
	if again := write(files("a", "1", "b", "2", "deep/c", "3")); again != first {
		t.Errorf("nothing has changed, and it was written again: %s, then %s", first, again)
	}
	second := write(files("a", "new", "deep/d", "4"))
	if second == first {
		t.Error("changed in place: a reader may see half of it")
	}
	if _, err := moment.Stat("a"); err == nil {
		t.Error("the old data is left")
	}
	// What a killed process has left behind.
	if err := os.MkdirAll(dir+"/..2020_01_01_00_00_00.1/x", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", dir+"/..data_tmp"); err != nil {
		t.Fatal(err)
	}
	write(files("a", "third"))
	write(files())
}

func TestWriteAtomicModes(t *testing.T) {
	dir := t.TempDir()
	f := map[string]file{"plain": {nil, 0o644}, "secret": {nil, 0o400}, "run": {nil, 0o755}}
	check := func(want map[string]os.FileMode) {
		t.Helper()
		for name, mode := range want {
			fi, err := os.Stat(filepath.Join(dir, name))
			if err != nil || fi.Mode() != mode {
				t.Errorf("%s: %v, %v", name, fi.Mode(), err)
			}
		}
	}
	if err := writeAtomic(dir, f, nil); err != nil {
		t.Fatal(err)
	}
	check(map[string]os.FileMode{"plain": 0o644, "secret": 0o400, "run": 0o755})
	f["more"] = file{nil, 0o600}
	if err := writeAtomic(dir, f, ptr.To(int64(os.Getgid()))); err != nil {
		t.Fatal(err)
	}
	check(map[string]os.FileMode{"plain": 0o644, "secret": 0o440, "run": 0o755, "more": 0o640})
}

func TestWriteAtomicStaysInside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	if err := writeAtomic(dir, files("a", "1"), nil); err != nil {
		t.Fatal(err)
	}
	before := names(t, dir)
	for _, path := range []string{"../out", "/etc/passwd", "..data", "..", "a/../../out", ""} {
		if err := writeAtomic(dir, files(path, "x"), nil); err == nil {
			t.Errorf("%q was written", path)
		}
		if now := names(t, dir); !slices.Equal(now, before) || read(t, dir+"/a") != "1" {
			t.Errorf("after %q: %v, was %v", path, now, before)
		}
	}
	if now := names(t, filepath.Dir(dir)); !slices.Equal(now, []string{"v"}) {
		t.Errorf("written outside: %v", now)
	}
}
