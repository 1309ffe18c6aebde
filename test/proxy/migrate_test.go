package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"fairway.dev/fairway/internal/testenv"
)

// TestFromKubeProxyAndBack walks the steps of docs/migrate-from-kube-proxy.md
// with a real kube-proxy, under load: Fairway's proxy beside it, then alone,
// then kube-proxy again. Nobody who connects notices.
//
// It runs where FAIRWAY_KUBE_PROXY names a kube-proxy: `make test-kube-proxy`.
func TestFromKubeProxyAndBack(t *testing.T) {
	upstream := requireKubeProxy(t)
	binary := testenv.NodeProgram(t, "one")
	for mode, program := range map[string]string{"nftables": "nft", "iptables": "iptables"} {
		t.Run(mode, func(t *testing.T) {
			if _, err := exec.LookPath(program); err != nil {
				t.Fatalf("kube-proxy needs the program %s in this mode: apt-get install %s", program, mode)
			}
			c := newCluster(t)
			old := c.kubeProxy(t, upstream, mode)
			l := c.load(t)
			more := func(step string) {
				t.Helper()
				from := l.done.Load()
				for deadline := time.Now().Add(time.Minute); l.done.Load() < from+100; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("%s: connections are no longer made", step)
					}
				}
			}
			more("kube-proxy alone")
			p := c.start(t, binary)
			more("both")
			// One endpoint goes; both follow, each at its own pace, and what goes
			// first in the kernel decides: the endpoint answers on meanwhile.
			c.setEndpoints(0, 1, 2)
			more("both, and an endpoint less")
			old.stop(syscall.SIGTERM)
			more("kube-proxy has ended, its rules are there")
			c.runOnNode(t, upstream, "--cleanup")
			more("Fairway alone")
			if mode == "nftables" {
				if tables := c.runOnNode(t, "nft", "list", "tables"); strings.Contains(tables, "kube-proxy") || !strings.Contains(tables, "fairway") {
					t.Errorf("after kube-proxy's clean-up:\n%s", tables)
				}
			}
			c.setEndpoints(1, 2, 3)
			more("Fairway alone, other endpoints")

			// And back.
			old = c.kubeProxy(t, upstream, mode)
			more("kube-proxy again beside it")
			p.stop(syscall.SIGTERM)
			c.runOnNode(t, binary, "proxy", "--cleanup")
			more("kube-proxy alone")
			if tables := c.runOnNode(t, "nft", "list", "tables"); strings.Contains(tables, "fairway") {
				t.Errorf("after our clean-up:\n%s", tables)
			}
			l.check(t, 700)
			old.stop(syscall.SIGKILL)
			if s := p.text(); strings.Contains(s, "level=ERROR") || strings.Contains(s, "somebody else changed") {
				t.Errorf("our proxy complains:\n%s", s)
			}
		})
	}
}

// requireKubeProxy returns a real kube-proxy's path, and skips the test where
// FAIRWAY_KUBE_PROXY does not name one.
func requireKubeProxy(t *testing.T) string {
	t.Helper()
	upstream := os.Getenv("FAIRWAY_KUBE_PROXY")
	if upstream == "" {
		t.Skip("FAIRWAY_KUBE_PROXY names no kube-proxy; `make test-kube-proxy` builds one")
	}
	testenv.RequireRoot(t)
	return upstream
}

// runOnNode runs a program on the node; it must succeed.
func (c *cluster) runOnNode(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out []byte
	err := c.node.NS.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// kubeProxy starts a kube-proxy on the node and waits until it has programmed
// its rules.
func (c *cluster) kubeProxy(t *testing.T, binary, mode string) *process {
	t.Helper()
	cmd := exec.Command(binary, "--kubeconfig", c.kubeconfig, "--hostname-override", "node-1", "--cluster-cidr", c.podCIDRs, "--proxy-mode", mode,
		"--oom-score-adj", "0", "--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0",
		// Those of our proxy are where kube-proxy's are in a cluster.
		"--healthz-bind-address", "127.0.0.1:20256", "--metrics-bind-address", "127.0.0.1:20249")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, exited: make(chan error, 1)}
	if err := c.node.NS.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	p.follow(out)
	t.Cleanup(func() { p.stop(syscall.SIGKILL) })
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DialContext: c.node.NS.DialContext, DisableKeepAlives: true}}
	programmed := func() error {
		resp, err := client.Get("http://127.0.0.1:20249/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "kubeproxy_sync_proxy_rules_last_timestamp_seconds") && !strings.HasSuffix(line, " 0\n") {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := programmed()
		if err == nil {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("kube-proxy does not get ready: %v\n%s", err, p.text())
		}
	}
}
