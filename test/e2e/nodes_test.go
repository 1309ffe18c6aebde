package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/testenv"
)

// A killed instance and a new start are the same cluster: Pods run on, or are
// made again, and nothing is left that belongs to nobody.
func TestKilled(t *testing.T) {
	c := Up(t, "--nodes", "2")
	c.example(t, "web-host.yaml")
	c.rolledOut(t, "deployment/web")
	pods := c.pods(t, "app=web")
	lost := pods[0].Name
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
	// The Pods go on by themselves; one of them ends while nobody looks.
	for _, p := range pods {
		if got, err := c.Get("http://" + p.Status.PodIP + ":8080/"); err != nil || !strings.Contains(got, p.Name) {
			t.Errorf("Pod %s without its instance: %q, %v", p.Name, got, err)
		}
	}
	if err := killPod(c.DataDir, string(pods[0].UID)); err != nil {
		t.Fatal(err)
	}
	c.Start(t)
	c.rolledOut(t, "deployment/web")
	c.waitPods(t, "app=web", 3)
	for _, p := range pods {
		now := c.pod(t, p.Name)
		if p.Name == lost {
			Eventually(t, "the Pod that ended runs again", func() error {
				now := c.pod(t, p.Name)
				if !ready(now) || now.Status.ContainerStatuses[0].RestartCount != 1 {
					return fmt.Errorf("status %+v", now.Status.ContainerStatuses)
				}
				return nil
			})
			continue
		}
		if a, b := p.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]; a.ContainerID != b.ContainerID || p.Status.PodIP != now.Status.PodIP {
			t.Errorf("Pod %s was %s at %s, is %s at %s", p.Name, a.ContainerID, p.Status.PodIP, b.ContainerID, now.Status.PodIP)
		}
	}
	prefix := c.prefix(t)
	namespaces, err := netns.List(prefix + "-p-")
	if err != nil || len(namespaces) != 3 {
		t.Errorf("network namespaces %v, %v; want one for each Pod", namespaces, err)
	}
	if out, err := c.Fairway("down", "--data-dir", c.DataDir); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	if left, _ := netns.List(prefix); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + prefix); len(left) > 0 {
		t.Errorf("control groups left: %v", left)
	}
	links, err := c.Host.NL.LinkList()
	if err != nil || len(links) != 1 {
		t.Errorf("%d links, %v; want loopback alone", len(links), err)
	}
}

// prefix is what the instance's names start with: that of its one link.
func (c *Cluster) prefix(t *testing.T) string {
	t.Helper()
	links, err := c.Host.NL.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Attrs().Name != "lo" {
			return l.Attrs().Name
		}
	}
	t.Fatal("the instance has no link on its machine")
	return ""
}

// killPod kills the first process of every container of a Pod.
func killPod(dataDir, uid string) error {
	procs, _ := filepath.Glob("/sys/fs/cgroup/unified/*/" + uid + "/*/cgroup.procs")
	more, _ := filepath.Glob("/sys/fs/cgroup/*/" + uid + "/*/cgroup.procs")
	for _, file := range append(procs, more...) {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, pid := range strings.Fields(string(b)) {
			var n int
			if _, err := fmt.Sscan(pid, &n); err != nil {
				return err
			}
			if err := unix.Kill(n, unix.SIGKILL); err != nil {
				return err
			}
			return nil
		}
	}
	return fmt.Errorf("no process of Pod %s found in a control group", uid)
}

// The Deployment with an image, in containerd, behind its Service.
func TestImages(t *testing.T) {
	testenv.RequireContainerd(t)
	t.Setenv("FAIRWAY_CRI_SOCKET", testenv.Containerd(t, testenv.NewHost(t, "containerd").NS))
	c := Up(t, "--nodes", "2")
	c.example(t, "client.yaml")
	c.example(t, "web-nginx.yaml")
	c.rolledOut(t, "deployment/nginx")
	c.waitPods(t, "app!=nginx", 1)
	Eventually(t, "an answer of the Service", func() error {
		out, err := c.Fairway("kubectl", "exec", "client", "--", "wget", "-qO-", "http://nginx/")
		if err != nil || !strings.Contains(out, "welcome") {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
}
