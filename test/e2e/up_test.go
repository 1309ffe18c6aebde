package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A person's first mistakes each get one clear sentence, and an instance that
// runs is not disturbed by them.
func TestUpRefusals(t *testing.T) {
	c := Up(t)
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"directory in use", []string{"up", "--data-dir", c.DataDir}, "is in use by process"},
		{"port taken", []string{"up", "--data-dir", filepath.Join(t.TempDir(), "b"), "--node-cidr", "172.31.0.0/24", "--pod-cidr", "10.245.0.0/16", "--service-cidr", "10.97.0.0/16"}, "--api-port: port 6443 is taken"},
		{"node range taken", []string{"up", "--data-dir", filepath.Join(t.TempDir(), "c"), "--api-port", "7443"}, "--node-cidr: 172.30.0.0/24 overlaps 172.30.0.0/24, which this machine already routes"},
		{"bad range", []string{"up", "--data-dir", filepath.Join(t.TempDir(), "d"), "--pod-cidr", "10.244.0.1/16"}, "did you mean 10.244.0.0/16?"},
		{"no instance here", []string{"down", "--data-dir", t.TempDir()}, "is not the data directory of an instance"},
		{"output", []string{"status", "--output", "yaml"}, `--output "yaml": must be text or json`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := c.Fairway(tc.args...)
			if err == nil || !strings.Contains(out, tc.want) {
				t.Errorf("got %v and\n%s\nwant an error with %q", err, out, tc.want)
			}
			if lines := strings.Count(strings.TrimSpace(lastParagraph(out)), "\n"); lines > 2 {
				t.Errorf("the error has %d lines, want a sentence:\n%s", lines+1, out)
			}
		})
	}
	if _, err := c.Client.CoreV1().Namespaces().Get(Context(t), "default", metav1.GetOptions{}); err != nil {
		t.Errorf("the running instance: %v", err)
	}
}

func lastParagraph(s string) string {
	parts := strings.Split(strings.TrimSpace(s), "\n\n")
	return parts[len(parts)-1]
}

func TestUpNeedsRoot(t *testing.T) {
	c := &Cluster{}
	bin, err := binary("fairway")
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.Command(bin, "up", "--data-dir", t.TempDir())
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		// The build may lie where nobody else may look.
		if err := checkExecutable(cmd); err != nil {
			t.Skip("user 65534 cannot run the binary where it was built: ", err)
		}
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "needs root") {
		t.Errorf("got %v and %q, want a word on root", err, out)
	}
}

func checkExecutable(like *exec.Cmd) error {
	cmd := exec.Command(like.Path, "version")
	cmd.SysProcAttr = like.SysProcAttr
	return cmd.Run()
}

// State survives an orderly stop, and kill -9 at any time.
func TestUpAgain(t *testing.T) {
	c := Up(t)
	ctx := Context(t)
	_, err := c.Client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "kept"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.Client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"down", "kill"} {
		if how == "down" {
			if out, err := c.Fairway("down", "--data-dir", c.DataDir); err != nil {
				t.Fatalf("down: %v\n%s", err, out)
			}
			st, code := c.status(t)
			if st.Running || code != 3 {
				t.Errorf("status after down: %+v, exit status %d, want not running and 3", st, code)
			}
		} else {
			st, _ := c.status(t)
			if err := syscall.Kill(st.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			Eventually(t, "the killed process is gone", func() error {
				if st, _ := c.status(t); st.Running {
					return errors.New("status says it runs")
				}
				return nil
			})
		}
		c.Start(t)
		if _, err := c.Client.CoreV1().ConfigMaps("default").Get(ctx, "kept", metav1.GetOptions{}); err != nil {
			t.Errorf("after %s and up: %v", how, err)
		}
		after, err := c.Client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil || after.UID != before.UID || after.Spec.ClusterIP != before.Spec.ClusterIP {
			t.Errorf("after %s and up: Service kubernetes is %v, %v, want the same as before", how, after, err)
		}
	}
}

// Two instances on one machine do not see each other.
func TestTwoInstances(t *testing.T) {
	a := Up(t)
	b := &Cluster{Host: a.Host, DataDir: filepath.Join(t.TempDir(), "two"), args: []string{
		"--api-port", "7443", "--node-cidr", "172.31.0.0/24", "--pod-cidr", "10.245.0.0/16", "--service-cidr", "10.97.0.0/16",
	}}
	t.Cleanup(func() {
		if out, err := b.Fairway("down", "--purge", "--data-dir", b.DataDir); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	b.Start(t)
	ctx := Context(t)
	if _, err := a.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "only-a"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Client.CoreV1().Namespaces().Get(ctx, "only-a", metav1.GetOptions{}); err == nil {
		t.Error("the second instance has the first one's namespace")
	}
	if out, err := b.Fairway("down", "--data-dir", b.DataDir); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	if st, code := a.status(t); !st.Healthy || code != 0 {
		t.Errorf("the first instance after the second went: %+v, exit status %d", st, code)
	}
}

// statusJSON is the part of `fairway status -o json` that tests look at.
type statusJSON struct {
	Running, Healthy bool
	PID              int
	Problem          string
}

func (c *Cluster) status(t *testing.T) (statusJSON, int) {
	t.Helper()
	var st statusJSON
	bin, err := binary("fairway")
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.Command(bin, "status", "--data-dir", c.DataDir, "--output", "json")
	out, err := c.Run(cmd)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatalf("status --output json: %v in %q", err, out)
	}
	return st, cmd.ProcessState.ExitCode()
}

// The memory and time that `up` takes are for the benchmarks; that its record
// is readable by its owner alone is for here.
func TestSecretsAreTheOwnersOnly(t *testing.T) {
	c := Up(t)
	for _, name := range []string{"kubeconfig", "instance.json", "fairway.log", "apiserver"} {
		st, err := os.Stat(filepath.Join(c.DataDir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s, want nothing for others", name, strconv.FormatUint(uint64(st.Mode().Perm()), 8))
		}
	}
}
