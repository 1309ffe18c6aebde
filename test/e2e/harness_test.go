// Package e2e tests the whole program: the fairway binary, started as a person
// would, on a machine of its own (a network namespace), with the real kernel
// and the real client-go.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"fairway.dev/fairway/internal/testenv"
)

// waitLong bounds waits for things that take seconds at most on an idle
// machine, with room for a busy one.
const waitLong = 2 * time.Minute

// Cluster is a running instance on a machine of its own.
type Cluster struct {
	// Host is the machine: what is outside the cluster.
	Host    *testenv.Host
	DataDir string
	Config  *rest.Config
	Client  kubernetes.Interface
	args    []string
}

// Up starts an instance with `fairway up --detach` and args on a new machine,
// and takes it down when the test ends.
func Up(t *testing.T, args ...string) *Cluster {
	t.Helper()
	testenv.RequireRoot(t)
	c := &Cluster{
		Host:    testenv.NewHost(t, "machine"),
		DataDir: filepath.Join(t.TempDir(), "fairway"),
		args:    args,
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.dumpLog(t)
		}
		if out, err := c.Fairway("down", "--purge", "--data-dir", c.DataDir); err != nil {
			t.Errorf("fairway down: %v\n%s", err, out)
		}
	})
	c.Start(t)
	return c
}

// Start starts the instance, again after it was stopped or killed.
func (c *Cluster) Start(t *testing.T) {
	t.Helper()
	out, err := c.Fairway(append([]string{"up", "--detach", "--data-dir", c.DataDir}, c.args...)...)
	if err != nil {
		t.Fatalf("fairway up: %v\n%s", err, out)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.DataDir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Dial = c.Host.NS.DialContext
	cfg.QPS, cfg.Burst = -1, -1
	c.Config = cfg
	c.Client = kubernetes.NewForConfigOrDie(cfg)
}

// Command prepares a program to run on the cluster's machine; call it with
// Host.NS.Do around Start, or use Fairway.
func (c *Cluster) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "FAIRWAY_DATA_DIR="+c.DataDir, "KUBECONFIG="+filepath.Join(c.DataDir, "kubeconfig"), "NO_COLOR=1")
	return cmd
}

// Run runs a command prepared by Command on the machine and returns what it
// printed on both streams.
func (c *Cluster) Run(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// A child belongs to the namespace of the thread that forks it.
	if err := c.Host.NS.Do(cmd.Start); err != nil {
		return "", err
	}
	late := time.AfterFunc(waitLong, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !late.Stop() {
		err = fmt.Errorf("killed, for it had not ended after %s: %w", waitLong, err)
	}
	return out.String(), err
}

// Fairway runs the binary on the machine.
func (c *Cluster) Fairway(args ...string) (string, error) {
	bin, err := binary("fairway")
	if err != nil {
		return "", err
	}
	return c.Run(c.Command(bin, args...))
}

// Kubectl runs `fairway kubectl`, which must succeed.
func (c *Cluster) Kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.Fairway(append([]string{"kubectl"}, args...)...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Apply applies YAML.
func (c *Cluster) Apply(t *testing.T, yaml string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "apply.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, "apply", "-f", file)
}

// HTTPClient requests from the machine, a new connection each time.
func (c *Cluster) HTTPClient(timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout:   timeout,
		Transport: &http.Transport{DialContext: c.Host.NS.DialContext, DisableKeepAlives: true},
	}
}

// Get requests a URL from the machine and returns the body.
func (c *Cluster) Get(url string) (string, error) {
	resp, err := c.HTTPClient(5 * time.Second).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}

func (c *Cluster) dumpLog(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(c.DataDir, "fairway.log"))
	if err != nil {
		return
	}
	const most = 20000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	t.Logf("end of the instance's log:\n%s", b)
}

// Eventually waits until f returns nil, and fails the test with f's last error
// if it never does.
func Eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(waitLong)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, waitLong, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Context ends with the test.
func Context(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return ctx
}

var buildOnce = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("FAIRWAY_BIN"); dir != "" {
		return dir, nil
	}
	// Outside `make test`: build what is to be tested.
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("fairway-e2e-%d", os.Getuid()))
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", dir+"/", "../../cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the binaries: %w\n%s", err, out)
	}
	return dir, nil
})

// binary returns the path of one of our programs.
func binary(name string) (string, error) {
	dir, err := buildOnce()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("FAIRWAY_BIN has no %s: run make build", name)
	}
	return path, nil
}
