package node_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/node"
	"fairway.dev/fairway/internal/testenv"
)

// Pods of an image run in containerd, in Fairway's own Pod network.
func TestCRI(t *testing.T) {
	testenv.RequireContainerd(t)
	if !testenv.Inside(t, nil) {
		return
	}
	socket := testenv.Containerd(t, nil)
	c := newCluster(t, 2, func(o *node.Options) { o.CRISocket = socket })
	web := v1.PodSpec{TerminationGracePeriodSeconds: ptr.To(int64(2)), Containers: []v1.Container{{Image: testenv.WebImage,
		Env:            []v1.EnvVar{{Name: "A", Value: "b"}},
		ReadinessProbe: &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Port: portOf(80)}}}}}}
	c.pod("web", web)
	p := c.until("web", "ready", ready)
	if s := p.Status.ContainerStatuses[0]; !strings.HasPrefix(s.ContainerID, "containerd://") || s.ImageID == "" {
		t.Errorf("status %+v", s)
	}
	for _, ip := range p.Status.PodIPs {
		host := ip.IP
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		if got, err := get(host + ":80"); err != nil || got != "welcome\n" {
			t.Errorf("from %s: %q, %v", host, got, err)
		}
	}
	t.Run("exec", func(t *testing.T) {
		out, _, err := c.exec("websocket", "web", "c", strings.NewReader("in "), []string{"/bin/sh", "-c", "cat; hostname; echo $A; cat /etc/hosts; cat /etc/resolv.conf"})
		if err != nil || !strings.HasPrefix(out, "in web\nb\n") || !strings.Contains(out, p.Status.PodIP) || !strings.Contains(out, "nameserver 10.96.0.10") {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("a Pod of both runtimes", func(t *testing.T) {
		c.pod("both", v1.PodSpec{NodeName: "node-2", TerminationGracePeriodSeconds: ptr.To(int64(2)), RestartPolicy: v1.RestartPolicyNever, Containers: []v1.Container{
			{Name: "image", Image: testenv.WebImage, Command: []string{"/bin/sh", "-c", "echo from image; exit 3"}},
			{Name: "host", Command: []string{"sh", "-c", "echo from host"}}}})
		p := c.until("both", "ended", ended)
		if p.Status.Phase != v1.PodFailed || p.Status.ContainerStatuses[0].State.Terminated.ExitCode != 3 {
			t.Errorf("status %+v", p.Status)
		}
		for _, name := range []string{"image", "host"} {
			if got := c.logs("both", v1.PodLogOptions{Container: name}); got != "from "+name+"\n" {
				t.Errorf("log of %s: %q", name, got)
			}
		}
	})
	t.Run("hostNetwork is the node's", func(t *testing.T) {
		host := web
		host.HostNetwork = true
		c.pod("hostnet", host)
		p := c.until("hostnet", "ready", ready)
		if p.Status.PodIP != "172.30.0.11" {
			t.Errorf("address %s", p.Status.PodIP)
		}
		if got, err := get("172.30.0.11:80"); err != nil || got != "welcome\n" {
			t.Errorf("from the node: %q, %v", got, err)
		}
		for _, other := range []string{"172.30.0.1:80", "172.30.0.12:80", "127.0.0.1:80"} {
			if got, err := get(other); err == nil {
				t.Errorf("%s, which is not the Pod's node, answers %q", other, got)
			}
		}
		if out, _, err := c.exec("websocket", "hostnet", "c", nil, []string{"/bin/hostname"}); out != "node-1\n" || err != nil {
			t.Errorf("hostname %q, %v", out, err)
		}
		c.delete("hostnet")
		c.gone("hostnet")
		node, err := netns.Open(c.opts.Prefix + "-node-1")
		if err != nil {
			t.Fatal(err)
		}
		defer node.Close()
		err = node.Do(func() error {
			lo, err := netlink.LinkByName("lo")
			if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
				err = fmt.Errorf("%+v is down", lo.Attrs())
			}
			return err
		})
		if err != nil {
			t.Errorf("the node's loopback: %v", err)
		}
	})
	t.Run("ephemeral containers", func(t *testing.T) {
		image := func(name string, cmd ...string) v1.EphemeralContainer {
			e := ephemeral(name, cmd...)
			e.Image = testenv.WebImage
			return e
		}
		busybox := func(args ...string) []string { return append([]string{"/bin/busybox"}, args...) }
		log := func(pod, name, want string) {
			t.Helper()
			c.eventually("log of "+name, func() error {
				if got := c.logs(pod, v1.PodLogOptions{Container: name}); !strings.Contains(got, want) {
					return fmt.Errorf("%q lacks %q", got, want)
				}
				return nil
			})
		}
		// An image beside an image, with the target's processes and without.
		seeing := image("seeing", busybox("ps")...)
		seeing.TargetContainerName = "c"
		c.debug("web", seeing)
		c.untilOver("web", "seeing")
		log("web", "seeing", "busybox httpd")
		c.debug("web", image("alone", busybox("ps")...))
		c.untilOver("web", "alone")
		if got := c.logs("web", v1.PodLogOptions{Container: "alone"}); strings.Contains(got, "httpd") {
			t.Errorf("sees another container's processes: %s", got)
		}
		// The machine's tools in the Pod of an image, and the other way about.
		c.debug("web", ephemeral("tools", sh("python3 -c 'import urllib.request; print(urllib.request.urlopen(\"http://127.0.0.1/\").read())'")...))
		c.untilOver("web", "tools")
		log("web", "tools", "welcome")
		c.pod("plain", v1.PodSpec{TerminationGracePeriodSeconds: ptr.To(int64(1)), Containers: []v1.Container{
			{Command: []string{"python3", "-m", "http.server", "8080", "--directory", "/etc"}, ReadinessProbe: &v1.Probe{ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: portOf(8080)}}}}}})
		c.until("plain", "ready", ready)
		c.debug("plain", image("boxed", sh("/bin/busybox wget -qO- http://127.0.0.1:8080/passwd; exec /bin/busybox sleep 1000")...))
		c.untilRuns("plain", "boxed")
		log("plain", "boxed", "root:")
		c.delete("plain")
		c.gone("plain")
	})
	t.Run("taken over", func(t *testing.T) {
		c.stop()
		c.start()
		q := c.until("web", "ready", ready)
		if q.Status.ContainerStatuses[0].ContainerID != p.Status.ContainerStatuses[0].ContainerID || q.Status.PodIP != p.Status.PodIP {
			t.Errorf("was %+v\nis  %+v", p.Status, q.Status)
		}
	})
	c.delete("web")
	c.gone("web")
	c.pod("left", web)
	c.until("left", "ready", ready)
	c.stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := node.Cleanup(ctx, c.opts); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Dir(socket) + "/cni/*/*"); len(left) > 0 {
		t.Errorf("files left: %v", left)
	}
	if _, err := os.Stat(filepath.Dir(socket) + "/state/io.containerd.runtime.v2.task/k8s.io"); err == nil {
		if left, _ := filepath.Glob(filepath.Dir(socket) + "/state/io.containerd.runtime.v2.task/k8s.io/*"); len(left) > 0 {
			t.Errorf("containers left: %v", left)
		}
	}
}
