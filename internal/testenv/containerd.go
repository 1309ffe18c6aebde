package testenv

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
)

// WebImage is an image that Containerd has: it answers HTTP on port 80 with
// "welcome", under the name of one that everybody knows.
const WebImage = "nginx:1.29"

// RequireContainerd skips the test with a reason where containerd, runc or a
// static busybox (for images made on the spot) are missing, and fails it
// instead if FAIRWAY_REQUIRE_CRI=1.
func RequireContainerd(t testing.TB) {
	t.Helper()
	RequireRoot(t)
	for _, tool := range []string{"containerd", "ctr", "runc", "busybox"} {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		msg := "needs " + tool + ": apt-get install containerd runc busybox-static"
		if os.Getenv("FAIRWAY_REQUIRE_CRI") == "1" {
			t.Fatal(msg + " (FAIRWAY_REQUIRE_CRI=1 forbids to skip)")
		}
		t.Skip(msg)
	}
}

// Containerd starts a containerd of the test's own, in the namespace ns (nil for
// the process's), with its files in a temporary directory and two images made
// on the spot, and returns its socket. It ends with the test.
func Containerd(t testing.TB, ns *netns.NS) (socket string) {
	t.Helper()
	RequireContainerd(t)
	// A socket's path has little room, and so has a shim's.
	dir, err := os.MkdirTemp("/tmp", "fwc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(dir)
		os.RemoveAll(dir) //nolint:errcheck
	})
	socket = filepath.Join(dir, "s")
	config := filepath.Join(dir, "config.toml")
	err = os.WriteFile(config, fmt.Appendf(nil, `version = 2
root = %q
state = %q
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "fairway.dev/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
`, dir+"/root", dir+"/state", socket, dir+"/cni/bin", dir+"/cni/net.d"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("containerd", "--config", config, "--log-level", "info")
	cmd.Stdout, cmd.Stderr = log, log
	start := cmd.Start
	if ns != nil {
		start = func() error { return ns.Do(cmd.Start) }
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM) //nolint:errcheck
		cmd.Wait()                       //nolint:errcheck
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("containerd:\n%s", b[max(0, len(b)-8000):])
		}
		log.Close()
	})
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("containerd does not come up")
		}
	}
	load(t, socket, image(t, imageConfig{Cmd: []string{"/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"}}, busybox(t), "docker.io/library/"+WebImage))
	load(t, socket, image(t, imageConfig{Cmd: []string{"/bin/busybox", "sleep", "1000000"}}, busybox(t), "fairway.dev/pause:1"))
	return socket
}

// ProgramImage gives a Containerd an image that holds a static program as its
// entry point, at the root, and nothing else. user is whom it runs as, "UID:GID",
// root if empty.
func ProgramImage(t testing.TB, socket, name, program, user string) {
	t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Base(program)
	load(t, socket, image(t, imageConfig{Entrypoint: []string{"/" + base}, User: user}, []tarFile{{base, b, 0o755}}, name))
}

// load imports an image where the cri plugin looks for it.
func load(t testing.TB, socket string, tarball []byte) {
	t.Helper()
	cmd := exec.Command("ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", "--snapshotter", "native", "-")
	cmd.Stdin = bytes.NewReader(tarball)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("import an image: %v\n%s", err, out)
	}
}

// imageConfig is the "config" of an OCI image configuration.
type imageConfig struct {
	Entrypoint, Cmd, Env []string `json:",omitempty"`
	User                 string   `json:",omitempty"`
}

// busybox are the files of an image with busybox and a page.
func busybox(t testing.TB) []tarFile {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := func(name string) tarFile { return tarFile{name: name, mode: 0o755 | 1<<30} }
	return []tarFile{dir("bin/"), {"bin/busybox", program, 0o755}, {"bin/sh", nil, 0}, {"bin/cat", nil, 0}, {"bin/hostname", nil, 0},
		dir("www/"), {"www/index.html", []byte("welcome\n"), 0o644}, dir("etc/"), {"etc/passwd", []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644}, dir("proc/"), dir("sys/"), dir("dev/"), dir("tmp/")}
}

// image makes an image of one layer in docker's archive format.
func image(t testing.TB, cfg imageConfig, files []tarFile, name string) []byte {
	t.Helper()
	cfg.Env = []string{"PATH=/bin"}
	layer := archive(t, files)
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": cfg,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	return archive(t, []tarFile{{"manifest.json", manifest, 0o644}, {"config.json", config, 0o644}, {"layer.tar", layer, 0o644}})
}

// tarFile with mode 0 is a link to busybox, with bit 30 a directory.
type tarFile struct {
	name string
	data []byte
	mode int64
}

func archive(t testing.TB, files []tarFile) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode & 0o777, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		switch {
		case f.mode == 0:
			h.Typeflag, h.Linkname = tar.TypeSymlink, "busybox"
		case f.mode&(1<<30) != 0:
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// unmountBelow unmounts all that containerd has left mounted.
func unmountBelow(dir string) {
	b, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			unix.Unmount(f[1], unix.MNT_DETACH) //nolint:errcheck
		}
	}
}
