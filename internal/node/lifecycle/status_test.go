package lifecycle

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/node/network"
	"fairway.dev/fairway/internal/node/runtime"
	"fairway.dev/fairway/internal/node/volumes"
)

// still is a worker that does nothing, for looking at what it would say.
func still(t *testing.T, spec v1.PodSpec) *worker {
	m := New(Config{Dir: t.TempDir()})
	w := newWorker(m, &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "uid"}, Spec: spec}, nil)
	w.pod = w.next
	if err := os.MkdirAll(w.logDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestRestarts(t *testing.T) {
	always, onFailure, never := v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever
	rule := func(op v1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) v1.Container {
		return v1.Container{RestartPolicy: ptr.To(v1.ContainerRestartPolicyNever), RestartPolicyRules: []v1.ContainerRestartRule{
			{Action: v1.ContainerRestartRuleActionRestart, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: op, Values: codes}}}}
	}
	in, notIn := v1.ContainerRestartRuleOnExitCodesOpIn, v1.ContainerRestartRuleOnExitCodesOpNotIn
	for _, test := range []struct {
		name   string
		policy v1.RestartPolicy
		c      container
		code   int
		want   bool
	}{
		{"always, well", always, container{}, 0, true},
		{"always, ill", always, container{}, 1, true},
		{"on failure, well", onFailure, container{}, 0, false},
		{"on failure, ill", onFailure, container{}, 1, true},
		{"never, ill", never, container{}, 1, false},
		{"init under always, well", always, container{init: true}, 0, false},
		{"init under always, ill", always, container{init: true}, 1, true},
		{"init under never, ill", never, container{init: true}, 1, false},
		{"sidecar under never", never, container{init: true, sidecar: true}, 0, true},
		{"ephemeral under always", always, container{ephemeral: true}, 1, false},
		{"its own policy", always, container{spec: &v1.Container{RestartPolicy: ptr.To(v1.ContainerRestartPolicyNever)}}, 1, false},
		{"in the rule", never, container{spec: ptr.To(rule(in, 42, 43))}, 43, true},
		{"not in the rule", never, container{spec: ptr.To(rule(in, 42))}, 43, false},
		{"exempt by the rule", never, container{spec: ptr.To(rule(notIn, 42))}, 42, false},
		{"not exempt", never, container{spec: ptr.To(rule(notIn, 42))}, 1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := &worker{pod: &v1.Pod{Spec: v1.PodSpec{RestartPolicy: test.policy}}}
			c := &test.c
			if c.spec == nil {
				c.spec = &v1.Container{}
			}
			if got := w.restarts(c, test.code); got != test.want {
				t.Errorf("restarts after %d: %t", test.code, got)
			}
		})
	}
}

func TestTerminated(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	for _, test := range []struct {
		name            string
		state           runtime.State
		waits           string // what the container's message was
		reason, message string
		code            int32
	}{
		{"well", runtime.State{StartedAt: began}, "", "Completed", "last words", 0},
		{"ill", runtime.State{StartedAt: began, ExitCode: 3}, "", "Error", "last words", 3},
		{"out of memory", runtime.State{StartedAt: began, ExitCode: 137, OOMKilled: true}, "", "OOMKilled", "last words", 137},
		{"nobody saw it", runtime.State{StartedAt: began, ExitCode: 137, Unknown: true}, "", "ContainerStatusUnknown", "The container could not be located when the node came back", 137},
		{"never begun", runtime.State{ExitCode: 127}, "no such command", "StartError", "no such command", 127},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := terminated(&container{exit: &test.state, message: test.waits}, "last words")
			if got.Reason != test.reason || got.Message != test.message || got.ExitCode != test.code {
				t.Errorf("%+v", got)
			}
			if !test.state.StartedAt.IsZero() && !got.StartedAt.Equal(&metav1.Time{Time: began.Truncate(time.Second)}) {
				t.Errorf("started at %v, which the API would not keep", got.StartedAt)
			}
		})
	}
}

func TestTerminationMessage(t *testing.T) {
	cri := func(lines ...string) string {
		var b strings.Builder
		for _, l := range lines {
			fmt.Fprintf(&b, "2026-01-02T03:04:05.000000006Z stdout F %s\n", l)
		}
		return b.String()
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprint("line ", i))
	}
	fallback := v1.TerminationMessageFallbackToLogsOnError
	for _, test := range []struct {
		name      string
		file, log string
		policy    v1.TerminationMessagePolicy
		code      int
		want      string
	}{
		{"from the file", "bye", cri("noise"), "", 1, "bye"},
		{"the file's end", strings.Repeat("x", 5000) + "end", "", "", 0, strings.Repeat("x", 4093) + "end"},
		{"no log unless asked", "", cri("noise"), v1.TerminationMessageReadFile, 1, ""},
		{"from the log", "", cri("one", "two"), fallback, 1, "one\ntwo"},
		{"the file first", "bye", cri("one"), fallback, 1, "bye"},
		{"not after success", "", cri("one"), fallback, 0, ""},
		{"80 lines of the log", "", cri(many...), fallback, 1, strings.Join(many[20:], "\n")},
		{"2048 bytes of the log", "", cri(strings.Repeat("y", 3000) + "end"), fallback, 1, strings.Repeat("y", 2045) + "end"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := still(t, v1.PodSpec{Containers: []v1.Container{{Name: "c", TerminationMessagePolicy: test.policy}}})
			c := w.ctrs[0]
			log := filepath.Join(t.TempDir(), "0.log")
			for path, data := range map[string]string{w.path("termination-log-c"): test.file, log: test.log} {
				if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c.logs, c.exit = []string{log}, &runtime.State{ExitCode: test.code}
			if got := w.termMessage(c); got != test.want {
				t.Errorf("%d bytes %.60q…, want %d bytes", len(got), got, len(test.want))
			}
		})
	}
}

func TestConditions(t *testing.T) {
	gate := []v1.PodReadinessGate{{ConditionType: "example.com/gate"}}
	for _, test := range []struct {
		name     string
		gates    []v1.PodReadinessGate
		others   []v1.PodCondition
		set      func(w *worker)
		ready    v1.ConditionStatus
		reason   string
		ctrReady v1.ConditionStatus
		message  string
	}{
		{"ready", nil, nil, func(w *worker) {}, "True", "", "True", ""},
		{"one is not", nil, nil, func(w *worker) { w.ctrs[1].ready = false }, "False", "ContainersNotReady", "False", "containers with unready status: [b]"},
		{"none runs", nil, nil, func(w *worker) { w.ctrs[0].running, w.ctrs[1].running = false, false }, "False", "ContainersNotReady", "False", "containers with unready status: [a b]"},
		{"gate closed", gate, nil, func(w *worker) {}, "False", "ReadinessGatesNotReady", "True", `corresponding condition of pod readiness gate [example.com/gate] is not "True".`},
		{"gate open", gate, []v1.PodCondition{{Type: "example.com/gate", Status: "True"}}, func(w *worker) {}, "True", "", "True", ""},
		{"failed", nil, nil, func(w *worker) { w.podFailed = "DeadlineExceeded" }, "False", "PodFailed", "False", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := still(t, v1.PodSpec{ReadinessGates: test.gates, Containers: []v1.Container{{Name: "a"}, {Name: "b"}}})
			w.next.Status.Conditions = test.others
			for _, c := range w.ctrs {
				c.id, c.running, c.ready, c.started = "x://"+c.spec.Name, true, true, true
			}
			test.set(w)
			got := map[v1.PodConditionType]v1.PodCondition{}
			for _, c := range w.status().Conditions {
				if _, twice := got[c.Type]; twice {
					t.Errorf("%s is there twice", c.Type)
				}
				got[c.Type] = c
			}
			if c := got[v1.PodReady]; c.Status != test.ready || c.Reason != test.reason || c.Message != test.message {
				t.Errorf("Ready is %+v", c)
			}
			if c := got[v1.ContainersReady]; c.Status != test.ctrReady {
				t.Errorf("ContainersReady is %+v", c)
			}
			for _, o := range test.others {
				if got[o.Type].Status != o.Status {
					t.Errorf("another's condition: %+v", got[o.Type])
				}
			}
		})
	}
}

// A condition keeps its time for as long as it stays the same.
func TestTransitionTimes(t *testing.T) {
	w := still(t, v1.PodSpec{Containers: []v1.Container{{Name: "a"}}})
	w.ctrs[0].id, w.ctrs[0].running, w.ctrs[0].ready = "x://a", true, true
	w.sent = w.status()
	long := metav1.NewTime(time.Now().Add(-time.Hour).Truncate(time.Second))
	for i := range w.sent.Conditions {
		w.sent.Conditions[i].LastTransitionTime = long
	}
	w.ctrs[0].ready = false
	for _, c := range w.status().Conditions {
		changed := c.Type == v1.PodReady || c.Type == v1.ContainersReady
		if kept := c.LastTransitionTime.Equal(&long); kept == changed {
			t.Errorf("%s %s since %v", c.Type, c.Status, c.LastTransitionTime)
		}
	}
}

func TestHostPorts(t *testing.T) {
	pod := &v1.Pod{Spec: v1.PodSpec{
		InitContainers: []v1.Container{{Ports: []v1.ContainerPort{{ContainerPort: 1, HostPort: 1}}},
			{RestartPolicy: ptr.To(v1.ContainerRestartPolicyAlways), Ports: []v1.ContainerPort{{ContainerPort: 2, HostPort: 20}}}},
		Containers: []v1.Container{{Ports: []v1.ContainerPort{{ContainerPort: 3}, {ContainerPort: 53, HostPort: 5353, Protocol: v1.ProtocolUDP, HostIP: "127.0.0.1"},
			{ContainerPort: 4, HostPort: 40, Protocol: v1.ProtocolSCTP}}}}}}
	want := []network.HostPort{{HostPort: 20, PodPort: 2, Protocol: unix.IPPROTO_TCP},
		{HostPort: 5353, PodPort: 53, Protocol: unix.IPPROTO_UDP, HostIP: netip.MustParseAddr("127.0.0.1")}, {HostPort: 40, PodPort: 4, Protocol: unix.IPPROTO_SCTP}}
	if got := hostPortsOf(pod); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestGrace(t *testing.T) {
	for _, test := range []struct {
		spec, deletion *int64
		want           time.Duration
	}{
		{nil, nil, 30 * time.Second}, {ptr.To(int64(5)), nil, 5 * time.Second}, {ptr.To(int64(5)), ptr.To(int64(0)), 0}, {nil, ptr.To(int64(7)), 7 * time.Second},
	} {
		w := &worker{pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionGracePeriodSeconds: test.deletion}, Spec: v1.PodSpec{TerminationGracePeriodSeconds: test.spec}}}
		if got := w.grace(); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

func TestContainerByName(t *testing.T) {
	w := still(t, v1.PodSpec{InitContainers: []v1.Container{{Name: "i"}}, Containers: []v1.Container{{Name: "a"}}})
	w.next.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "e"}}}
	w.takeEphemeral()
	w.takeEphemeral() // no news
	if len(w.ctrs) != 3 {
		t.Fatalf("%d containers", len(w.ctrs))
	}
	w.ctrs[1].logs = []string{"old", "new"}
	w.m.byName[types.NamespacedName{Namespace: "ns", Name: "p"}] = w
	for name, want := range map[string]string{"": "a", "i": "i", "e": "e"} {
		h, err := w.m.Container("ns", "p", name)
		if err != nil || h.Spec.Name != want {
			t.Errorf("container %q: %+v, %v", name, h.Spec, err)
		}
	}
	if h, _ := w.m.Container("ns", "p", "a"); h.Log != "new" || h.Previous != "old" {
		t.Errorf("logs %q, before %q", h.Log, h.Previous)
	}
	for _, bad := range [][3]string{{"ns", "p", "none"}, {"ns", "q", "a"}, {"other", "p", "a"}} {
		if _, err := w.m.Container(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%v is found", bad)
		}
	}
}

func TestPullSecrets(t *testing.T) {
	client := fake.NewClientset(&v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "good"}, Data: map[string][]byte{
		v1.DockerConfigJsonKey: []byte(`{"auths":{"registry.example.com":{"auth":"bWU6c2VjOnJldA=="}}}`)}},
		&v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "broken"}, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`{`)}})
	w := still(t, v1.PodSpec{ImagePullSecrets: []v1.LocalObjectReference{{Name: "none"}, {Name: "broken"}, {Name: "good"}}})
	w.m.cfg.Objects = volumes.NewObjects(client, time.Minute)
	got, err := w.pullSecrets(t.Context())
	want := []runtime.Auth{{Username: "me", Password: "sec:ret", ServerAddress: "registry.example.com"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}
