package proxy_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/internal/testenv"
)

// container runs the DaemonSet's containers in the node's network.
type container struct {
	*cluster
	*testenv.Containers
}

// run starts the container and waits until the table is programmed.
func (c *container) run(t *testing.T, id string, spec *corev1.Container) *process {
	t.Helper()
	cmd := c.Command(t, id, spec)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, exited: make(chan error, 1)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.follow(out)
	t.Cleanup(func() { c.Kill(id); <-p.exited })
	p.await(t, "")
	return p
}

// TestContainer runs the containers of deploy/proxy/daemonset.yaml as it says:
// the image from scratch, the capabilities given and no other, the root
// read-only, the system calls of the default profile.
func TestContainer(t *testing.T) {
	testenv.RequireContainerd(t)
	manifest, err := os.ReadFile("../../deploy/proxy/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var ds appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(manifest, &ds); err != nil {
		t.Fatal(err)
	}
	pod := ds.Spec.Template.Spec
	c := &container{cluster: newCluster(t)}
	config := t.TempDir() // with what the ConfigMap kube-proxy holds
	kubeconfig, err := os.ReadFile(c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"kubeconfig.conf": kubeconfig,
		// As kubeadm makes it, shortened.
		"config.conf": []byte(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}
clusterCIDR: 10.244.0.0/16
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 12345s, tcpCloseWaitTimeout: 0s}
mode: nftables
oomScoreAdj: 0
`),
	} {
		if err := os.WriteFile(filepath.Join(config, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Containers = testenv.NewContainers(t, c.node, testenv.NodeProgram(t, "image"))
	c.Mounts = map[string]string{config: "/var/lib/kube-proxy"}
	c.Vars = map[string]string{"NODE_NAME": "node-1"}

	if out, err := c.Command(t, "limits", &pod.InitContainers[0]).CombinedOutput(); err != nil {
		t.Fatalf("init container: %v\n%s", err, out)
	}
	var timeout []byte
	if err := c.node.NS.Do(func() (err error) {
		timeout, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
		return err
	}); err != nil || strings.TrimSpace(string(timeout)) != "12345" {
		t.Errorf("the init container leaves a timeout of %q, %v, want 12345", timeout, err)
	}

	first := c.run(t, "proxy-1", &pod.Containers[0])
	l := c.load(t)
	more := func(what string) {
		t.Helper()
		from := l.done.Load()
		for deadline := time.Now().Add(time.Minute); l.done.Load() < from+100; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: no more connections", what)
			}
		}
	}
	more("programmed")
	c.Kill("proxy-1")
	more("without a proxy")
	if err := <-first.exited; err == nil {
		t.Error("the killed container says that all was well")
	} else {
		first.exited <- err
	}
	second := c.run(t, "proxy-2", &pod.Containers[0])
	c.setEndpoints(1, 2)
	more("another proxy")
	second.cmd.Process.Signal(syscall.SIGTERM) // which ctr hands on
	if err := <-second.exited; err != nil {
		t.Errorf("asked to end: %v", err)
	} else {
		second.exited <- err
	}
	l.stop()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) > 0 {
		t.Errorf("%d connections failed: %s", len(l.failed), l.failed[0])
	}
	for _, p := range []*process{first, second} {
		if s := p.text(); strings.Contains(s, "level=ERROR") || strings.Contains(s, "level=WARN") {
			t.Errorf("the proxy complains:\n%s", s)
		}
	}
}
