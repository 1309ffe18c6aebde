package node_test

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/testenv"
)

// debug adds an ephemeral container to a Pod, as `kubectl debug` does.
func (c *cluster) debug(pod string, e v1.EphemeralContainer) {
	c.t.Helper()
	if e.Image == "" {
		e.Image = "host"
	}
	c.eventually("add an ephemeral container", func() error {
		p, err := c.CoreV1().Pods("default").Get(c.t.Context(), pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, e)
		_, err = c.CoreV1().Pods("default").UpdateEphemeralContainers(c.t.Context(), pod, p, metav1.UpdateOptions{})
		return err
	})
}

func ephemeral(name string, cmd ...string) v1.EphemeralContainer {
	return v1.EphemeralContainer{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: name, Command: cmd}}
}

// ephemeralStatus is that of one of a Pod's ephemeral containers, empty if it
// has none yet.
func ephemeralStatus(p *v1.Pod, name string) v1.ContainerStatus {
	i := slices.IndexFunc(p.Status.EphemeralContainerStatuses, func(s v1.ContainerStatus) bool { return s.Name == name })
	if i < 0 {
		return v1.ContainerStatus{}
	}
	return p.Status.EphemeralContainerStatuses[i]
}

func (c *cluster) untilRuns(pod, name string) *v1.Pod {
	c.t.Helper()
	return c.until(pod, "running "+name, func(p *v1.Pod) bool { return ephemeralStatus(p, name).State.Running != nil })
}

func (c *cluster) untilOver(pod, name string) *v1.ContainerStateTerminated {
	c.t.Helper()
	p := c.until(pod, "done with "+name, func(p *v1.Pod) bool { return ephemeralStatus(p, name).State.Terminated != nil })
	return ephemeralStatus(p, name).State.Terminated
}

func TestEphemeralContainers(t *testing.T) {
	if !testenv.Inside(t, nil) {
		return
	}
	c := newCluster(t, 1)
	serve := []v1.Container{{Command: []string{"python3", "-m", "http.server", "8080", "--bind", "0.0.0.0", "--directory", "/etc"},
		ReadinessProbe: &v1.Probe{ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: portOf(8080)}}}}}
	c.pod("web", v1.PodSpec{TerminationGracePeriodSeconds: ptr.To(int64(1)), Containers: serve})
	before := c.until("web", "ready", ready)

	t.Run("in the Pod's network", func(t *testing.T) {
		c.debug("web", ephemeral("look", sh(`python3 -c 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:8080/hostname").status)'; hostname; exit 3`)...))
		if over := c.untilOver("web", "look"); over.ExitCode != 3 || over.Reason != "Error" {
			t.Errorf("terminated %+v", over)
		}
		if got := c.logs("web", v1.PodLogOptions{Container: "look"}); !strings.HasSuffix(got, "200\nweb\n") {
			t.Errorf("log %q", got)
		}
	})
	t.Run("attach and exec", func(t *testing.T) {
		e := ephemeral("shell", "sh")
		e.Stdin, e.TTY, e.TargetContainerName = true, true, "c"
		c.debug("web", e)
		c.untilRuns("web", "shell")
		req := c.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name("web").SubResource("attach").
			VersionedParams(&v1.PodAttachOptions{Container: "shell", Stdin: true, Stdout: true, TTY: true}, scheme.ParameterCodec)
		ex, err := remotecommand.NewWebSocketExecutor(c.admin, "GET", req.URL().String())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		w := &until{want: "answer 42", found: cancel}
		r, pw := io.Pipe()
		go io.WriteString(pw, "echo answer $((6*7))\n")                                        //nolint:errcheck
		ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: r, Stdout: w, Tty: true}) //nolint:errcheck // ended by cancel
		if !w.ok() {
			t.Errorf("attached: %q", w.text())
		}
		if out, _, err := c.exec("websocket", "web", "shell", nil, sh("echo hello")); out != "hello\n" || err != nil {
			t.Errorf("exec: %q, %v", out, err)
		}
	})
	t.Run("one that cannot start", func(t *testing.T) {
		c.debug("web", ephemeral("none", "/no/such/command"))
		if over := c.untilOver("web", "none"); over.Reason != "StartError" || over.ExitCode == 0 {
			t.Errorf("terminated %+v", over)
		}
		e := ephemeral("lost", "true")
		e.Image = "nginx"
		c.debug("web", e)
		c.until("web", "saying what is missing", func(p *v1.Pod) bool {
			w := ephemeralStatus(p, "lost").State.Waiting
			return w != nil && strings.Contains(w.Message, "apt-get install containerd")
		})
	})
	t.Run("the Pod does not mind", func(t *testing.T) {
		p := c.until("web", "ready", ready)
		if p.Status.Phase != v1.PodRunning || p.Status.PodIP != before.Status.PodIP ||
			p.Status.ContainerStatuses[0].ContainerID != before.Status.ContainerStatuses[0].ContainerID || p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("was %+v\nis  %+v", before.Status, p.Status)
		}
		if s := ephemeralStatus(p, "look"); s.RestartCount != 0 || s.Ready || s.Started != nil || s.State.Terminated == nil {
			t.Errorf("status %+v", s)
		}
	})
	t.Run("while an init container waits", func(t *testing.T) {
		dir := t.TempDir()
		c.pod("init", v1.PodSpec{TerminationGracePeriodSeconds: ptr.To(int64(1)), RestartPolicy: v1.RestartPolicyNever,
			InitContainers: []v1.Container{{Name: "first", Command: sh("until [ -e " + dir + "/go ]; do sleep 0.05; done")}},
			Containers:     []v1.Container{{Command: sh("exit 0")}}})
		c.until("init", "running its init container", func(p *v1.Pod) bool {
			return len(p.Status.InitContainerStatuses) == 1 && p.Status.InitContainerStatuses[0].State.Running != nil
		})
		// A failure of an ephemeral container is none of the Pod's, and one that runs
		// on does not keep it from ending.
		c.debug("init", ephemeral("stays", "sleep", "1000"))
		c.untilRuns("init", "stays")
		c.debug("init", ephemeral("touch", sh("touch "+dir+"/go; exit 1")...))
		p := c.until("init", "ended", ended)
		if p.Status.Phase != v1.PodSucceeded {
			t.Errorf("status %+v", p.Status)
		}
		if s := ephemeralStatus(p, "stays").State; s.Terminated == nil {
			t.Errorf("runs in a Pod that has ended: %+v", s)
		}
	})
	t.Run("taken over", func(t *testing.T) {
		c.debug("web", ephemeral("runs", sh("while :; do echo tick; sleep 0.05; done")...))
		was := c.untilRuns("web", "runs")
		c.stop()
		c.start()
		// The terminal of "shell" goes with the process that held it.
		if over := c.untilOver("web", "shell"); over.ExitCode == 0 {
			t.Errorf("terminated %+v", over)
		}
		is := c.untilRuns("web", "runs")
		for _, name := range []string{"runs", "look", "none"} {
			a, b := ephemeralStatus(was, name), ephemeralStatus(is, name)
			if a.ContainerID != b.ContainerID || b.RestartCount != 0 {
				t.Errorf("was %+v\nis  %+v", a, b)
			}
		}
		c.eventually("the log of the one taken over", func() error {
			if got := c.logs("web", v1.PodLogOptions{Container: "runs", TailLines: ptr.To(int64(1))}); got != "tick\n" {
				return fmt.Errorf("%q", got)
			}
			return nil
		})
		if out, _, err := c.exec("websocket", "web", "runs", nil, sh("echo hello")); out != "hello\n" || err != nil {
			t.Errorf("exec: %q, %v", out, err)
		}
	})
	c.delete("web")
	c.gone("web")
}
