package node_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

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
