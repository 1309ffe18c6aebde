package lifecycle

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func containers(names ...string) (out []v1.Container) {
	for _, n := range names {
		out = append(out, v1.Container{Name: n, Command: []string{n}})
	}
	return out
}

func sidecar(name string) v1.Container {
	return v1.Container{Name: name, Command: []string{name}, RestartPolicy: ptr.To(v1.ContainerRestartPolicyAlways)}
}

func readyOf(p *v1.Pod) v1.ConditionStatus {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status
		}
	}
	return ""
}

// Init containers one after the other, sidecars beside them, then all others.
func TestOrderOfStart(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.pod("p", v1.PodSpec{InitContainers: []v1.Container{containers("one")[0], sidecar("side"), containers("two")[0]}, Containers: containers("a", "b")})
		steps := []struct {
			end   string
			calls string
			phase v1.PodPhase
			ready v1.ConditionStatus
		}{
			{"", "sandbox, start one", v1.PodPending, v1.ConditionFalse},
			{"one", "start side, start two", v1.PodPending, v1.ConditionFalse},
			{"two", "start a, start b", v1.PodRunning, v1.ConditionTrue},
		}
		for _, s := range steps {
			if s.end != "" {
				b.rt.end(s.end, 0)
			}
			p := b.get("p")
			if got := b.rt.said(); got != s.calls || p.Status.Phase != s.phase || readyOf(p) != s.ready {
				t.Errorf("after the end of %q: %s; %s, ready %s; want %+v", s.end, got, p.Status.Phase, readyOf(p), s)
			}
		}
		if p := b.get("p"); p.Status.PodIP != "10.244.1.2" || p.Status.HostIP != "172.30.0.11" {
			t.Errorf("addresses %s on %s", p.Status.PodIP, p.Status.HostIP)
		}
	})
}

// The first restart is at once, then 10 s, 20 s, … up to 5 min; a container that
// has run for 10 min begins anew.
func TestBackOff(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.pod("p", v1.PodSpec{Containers: containers("c")})
		b.rt.said()
		crash := func() (took time.Duration) {
			time.Sleep(time.Second)
			ended := time.Now()
			b.rt.end("c", 1)
			for b.rt.said() == "" {
				cs := b.get("p").Status.ContainerStatuses[0]
				if cs.State.Waiting == nil || cs.State.Waiting.Reason != "CrashLoopBackOff" || cs.LastTerminationState.Terminated.ExitCode != 1 {
					t.Fatalf("%v after a crash: %+v", time.Since(ended), cs)
				}
				time.Sleep(time.Second)
				synctest.Wait()
			}
			return time.Since(ended).Round(time.Second)
		}
		for i, want := range []time.Duration{0, 10, 20, 40, 80, 160, 300, 300} {
			if got := crash(); got != want*time.Second {
				t.Errorf("restart %d after %v, want %v", i+1, got, want*time.Second)
			}
			if n := b.get("p").Status.ContainerStatuses[0].RestartCount; n != int32(i+1) {
				t.Errorf("restart count %d, want %d", n, i+1)
			}
		}
		if said := strings.Join(b.seen(), "\n"); !strings.Contains(said, "Warning BackOff Back-off restarting failed container c in pod p_ns(uid-p)") {
			t.Errorf("events:\n%s", said)
		}
		time.Sleep(11 * time.Minute)
		for _, want := range []time.Duration{0, 10} {
			if got := crash(); got != want*time.Second {
				t.Errorf("after a long life: restarted after %v, want %v", got, want*time.Second)
			}
		}
	})
}

// What becomes of a Pod whose containers end.
func TestEnds(t *testing.T) {
	type end struct {
		name string
		code int
	}
	for _, test := range []struct {
		name   string
		policy v1.RestartPolicy
		spec   v1.PodSpec
		ends   []end
		phase  v1.PodPhase
		calls  string // after the Pod had begun
	}{
		{"all well", v1.RestartPolicyNever, v1.PodSpec{Containers: containers("a", "b")}, []end{{"a", 0}, {"b", 0}}, v1.PodSucceeded, "remove sandbox"},
		{"one failed", v1.RestartPolicyNever, v1.PodSpec{Containers: containers("a", "b")}, []end{{"a", 3}, {"b", 0}}, v1.PodFailed, "remove sandbox"},
		{"one goes on", v1.RestartPolicyNever, v1.PodSpec{Containers: containers("a", "b")}, []end{{"a", 3}}, v1.PodRunning, ""},
		{"again after a failure", v1.RestartPolicyOnFailure, v1.PodSpec{Containers: containers("a")}, []end{{"a", 1}, {"a", 0}}, v1.PodSucceeded, "start a, remove sandbox"},
		{"always", v1.RestartPolicyAlways, v1.PodSpec{Containers: containers("a")}, []end{{"a", 0}}, v1.PodRunning, "start a"},
		{"a sidecar does not count", v1.RestartPolicyNever, v1.PodSpec{InitContainers: []v1.Container{sidecar("side")}, Containers: containers("a")},
			[]end{{"side", 1}, {"a", 0}}, v1.PodSucceeded, "start side, stop side 30s, remove sandbox"},
		{"an init container fails", v1.RestartPolicyNever, v1.PodSpec{InitContainers: containers("i"), Containers: containers("a")}, []end{{"i", 1}}, v1.PodFailed, "remove sandbox"},
		{"an init container tries again", v1.RestartPolicyAlways, v1.PodSpec{InitContainers: containers("i"), Containers: containers("a")}, []end{{"i", 1}, {"i", 0}}, v1.PodRunning, "start i, start a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bench) {
				test.spec.RestartPolicy = test.policy
				b.pod("p", test.spec)
				b.rt.said()
				for _, e := range test.ends {
					b.rt.end(e.name, e.code)
					time.Sleep(100 * time.Millisecond) // what is stopped is looked at after a while
					synctest.Wait()
				}
				p := b.get("p")
				if got := b.rt.said(); got != test.calls || p.Status.Phase != test.phase {
					t.Errorf("%s, phase %s; want %s, %s", got, p.Status.Phase, test.calls, test.phase)
				}
				if p.Status.Phase != v1.PodRunning && readyOf(p) != v1.ConditionFalse {
					t.Errorf("a Pod that has ended is ready: %s", readyOf(p))
				}
			})
		})
	}
}

func TestActiveDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.pod("p", v1.PodSpec{ActiveDeadlineSeconds: ptr.To(int64(60)), TerminationGracePeriodSeconds: ptr.To(int64(7)), Containers: containers("c")})
		b.rt.said()
		time.Sleep(58 * time.Second)
		synctest.Wait()
		if got := b.rt.said(); got != "" {
			t.Errorf("before its deadline: %s", got)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		p := b.get("p")
		if got := b.rt.said(); got != "stop c 7s, remove sandbox" || p.Status.Phase != v1.PodFailed || p.Status.Reason != "DeadlineExceeded" {
			t.Errorf("%s; %s %s", got, p.Status.Phase, p.Status.Reason)
		}
	})
}

// Deleting: the containers end within the grace period, sidecars after the
// others and in the reverse of their order, and the object goes last.
func TestTermination(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		spec := v1.PodSpec{InitContainers: []v1.Container{sidecar("s1"), sidecar("s2")}, Containers: containers("c"), TerminationGracePeriodSeconds: ptr.To(int64(20))}
		spec.Containers[0].Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"bye"}}}}
		b.rt.stubborn = map[string]bool{"c": true}
		p := b.pod("p", spec)
		b.rt.said()
		begin := time.Now()
		p = p.DeepCopy()
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = ptr.To(metav1.NewTime(begin.Add(20*time.Second))), ptr.To(int64(20))
		b.tell(p)
		for b.get("p") != nil {
			if time.Since(begin) > time.Minute {
				t.Fatalf("still there: %s", b.rt.said())
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if took := time.Since(begin).Round(time.Second); took < 20*time.Second || took > 22*time.Second {
			t.Errorf("took %v", took)
		}
		if got, want := b.rt.said(), "exec c bye, stop c 20s, stop s2 0s, stop s1 0s, remove sandbox"; got != want {
			t.Errorf("calls %s\nwant  %s", got, want)
		}
	})
}

// Ephemeral containers start at once and once, and the Pod does not mind.
func TestEphemeral(t *testing.T) {
	add := func(p *v1.Pod, name, target string, cmd ...string) *v1.Pod {
		p = p.DeepCopy()
		p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, v1.EphemeralContainer{TargetContainerName: target,
			EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: name, Image: "host", Command: cmd}})
		return p
	}
	inBubble(t, func(t *testing.T, b *bench) {
		p := b.pod("p", v1.PodSpec{InitContainers: containers("i"), Containers: containers("c")})
		b.rt.said()
		p = add(p, "e1", "")
		b.tell(p)
		if got := b.rt.said(); got != "start e1" {
			t.Errorf("while the init container runs: %s", got)
		}
		p = add(p, "early", "c") // its target does not run yet
		b.tell(p)
		if s := b.get("p").Status.EphemeralContainerStatuses; len(s) != 2 || s[1].State.Waiting == nil || s[1].State.Waiting.Reason != "CreateContainerConfigError" {
			t.Errorf("without its target: %+v", s)
		}
		b.rt.end("i", 0)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := b.rt.said(); got != "start c, start early" {
			t.Errorf("when the init container has ended: %s", got)
		}
		i := slices.IndexFunc(b.get("p").Status.ContainerStatuses, func(s v1.ContainerStatus) bool { return s.Name == "c" })
		if spec, want := b.rt.specs[len(b.rt.specs)-1], b.get("p").Status.ContainerStatuses[i].ContainerID; spec.SeeProcesses != want {
			t.Errorf("sees the processes of %q, want %q", spec.SeeProcesses, want)
		}
		b.rt.end("e1", 1)
		p = add(p, "bad", "", "/no/such/command")
		b.tell(p)
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := b.rt.said(); got != "cannot start bad" {
			t.Errorf("started again: %s", got)
		}
		got := b.get("p").Status
		if got.Phase != v1.PodRunning || readyOf(b.get("p")) != v1.ConditionTrue || got.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("the Pod: %+v", got)
		}
		what := func(p *v1.Pod) (out []string) {
			for _, s := range p.Status.EphemeralContainerStatuses {
				switch {
				case s.Ready || s.Started != nil || s.RestartCount != 0:
					t.Errorf("%s: %+v", s.Name, s)
				case s.State.Running != nil:
					out = append(out, s.Name+" runs")
				case s.State.Terminated != nil:
					out = append(out, fmt.Sprintf("%s %s %d", s.Name, s.State.Terminated.Reason, s.State.Terminated.ExitCode))
				}
			}
			return out
		}
		want := []string{"e1 Error 1", "early runs", "bad StartError 127"}
		if got := what(b.get("p")); !slices.Equal(got, want) {
			t.Errorf("statuses %v, want %v", got, want)
		}
		// The next process finds them as they are, with what has ended meanwhile.
		asIs := func() *v1.Pod {
			now := b.get("p")
			now.Spec = p.Spec
			return now
		}
		b.restart(func() {})
		b.tell(asIs())
		if got := b.rt.said(); got != "" {
			t.Errorf("after a restart: %s", got)
		}
		b.restart(func() { b.rt.end("early", 5) })
		b.tell(asIs())
		want[1] = "early Error 5"
		if got := what(b.get("p")); b.rt.said() != "" || !slices.Equal(got, want) {
			t.Errorf("statuses %v, want %v", got, want)
		}
	})
}

// A container whose image is changed in place is started again with it, whatever
// the restart policy; one that cannot have its image gets another chance at once.
func TestImageChanged(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		spec := v1.PodSpec{RestartPolicy: v1.RestartPolicyNever, TerminationGracePeriodSeconds: ptr.To(int64(3)), InitContainers: containers("i"), Containers: containers("a", "b")}
		spec.Containers[1].Image = "none"
		p := b.pod("p", spec)
		b.rt.end("i", 0)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := b.rt.said(); got != "sandbox, start i, start a" {
			t.Fatalf("at first: %s", got)
		}
		change := func(i int, image string) {
			p = p.DeepCopy()
			p.Spec.Containers[i].Image = image
			b.tell(p)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		change(1, "host")
		if got := b.rt.said(); got != "start b" {
			t.Errorf("with an image that there is: %s", got)
		}
		change(0, "host:2")
		if got := b.rt.said(); got != "stop a 3s, start a:2" {
			t.Errorf("with another image: %s", got)
		}
		s := b.get("p").Status
		if cs := s.ContainerStatuses[0]; s.Phase != v1.PodRunning || cs.RestartCount != 1 || cs.State.Running == nil || cs.Image != "host:2" || s.ContainerStatuses[1].RestartCount != 0 {
			t.Errorf("status %+v", s)
		}
		if said := strings.Join(b.seen(), "\n"); !strings.Contains(said, "Normal Killing Container a definition changed, will be restarted") {
			t.Errorf("events:\n%s", said)
		}
		b.restart(func() { p = p.DeepCopy(); p.Spec.Containers[0].Image = "host:3" })
		now := b.get("p")
		now.Spec = p.Spec
		b.tell(now)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := b.rt.said(); got != "stop a 3s, start a:3" {
			t.Errorf("changed while nobody looked: %s", got)
		}
		// Only this once: the restart policy is what it was.
		b.rt.end("a", 1)
		b.rt.end("b", 0)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := b.rt.said(); got != "remove sandbox" || b.get("p").Status.Phase != v1.PodFailed {
			t.Errorf("when it fails: %s, %s", got, b.get("p").Status.Phase)
		}
	})
}

// A Pod ends with its own containers: an ephemeral one that runs on is stopped.
func TestEphemeralEndsWithThePod(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		p := b.pod("p", v1.PodSpec{RestartPolicy: v1.RestartPolicyNever, Containers: containers("c")}).DeepCopy()
		p.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "e", Image: "host", Command: []string{"e"}}}}
		b.tell(p)
		b.rt.said()
		b.rt.end("c", 0)
		time.Sleep(time.Second)
		synctest.Wait()
		s := b.get("p").Status
		if got := b.rt.said(); got != "stop e 30s, remove sandbox" || s.Phase != v1.PodSucceeded || s.EphemeralContainerStatuses[0].State.Terminated == nil {
			t.Errorf("%s; %+v", got, s)
		}
	})
}
