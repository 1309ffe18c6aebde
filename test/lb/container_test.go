package lb

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/testenv"
)

// TestContainers runs the containers of deploy/lb/lb.yaml as it says, both on
// one node: the image from scratch, their users, the capabilities given and no
// other, the root read-only, the system calls of the default profile.
func TestContainers(t *testing.T) {
	testenv.RequireContainerd(t)
	l := newLAN(t, 1)
	controller, announcer := l.apply()
	c := testenv.NewContainers(t, l.nodes[0], l.program)
	run := func(pod corev1.PodSpec, account string) (*process, string) {
		t.Helper()
		spec := &pod.Containers[0]
		if !pod.HostNetwork || pod.ServiceAccountName != account {
			t.Errorf("%s: hostNetwork %v, service account %s", spec.Name, pod.HostNetwork, pod.ServiceAccountName)
		}
		for _, probe := range []*corev1.Probe{spec.LivenessProbe, spec.ReadinessProbe} {
			if probe.HTTPGet.Port.IntVal != spec.Ports[0].ContainerPort {
				t.Errorf("%s: probe of port %s", spec.Name, probe.HTTPGet.Port.String())
			}
		}
		file := l.kubeconfig(account)
		// In a cluster the Pod's service account leads to the API.
		c.Mounts = map[string]string{filepath.Dir(file): "/etc/api"}
		c.Env = []string{"KUBECONFIG=/etc/api/kubeconfig"}
		for _, e := range spec.Env {
			if e.ValueFrom == nil || e.ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
				t.Fatalf("%s: $%s is not known to this test", spec.Name, e.Name)
			}
			c.Env = append(c.Env, e.Name+"="+nodeName(0))
		}
		p := l.begin(l.nodes[0], fmt.Sprint(spec.Ports[0].ContainerPort), c.Command(t, spec.Name, spec), func() { c.Kill(spec.Name) })
		return p, spec.Name
	}
	first, controllerID := run(controller, "fairway-lb")
	l.ready(first)
	second, announcerID := run(announcer, "fairway-announcer")
	l.ready(second)
	for id, want := range map[string]map[string]string{
		controllerID: {"Uid": "65534 65534 65534 65534", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"},
		announcerID:  {"Uid": "0 0 0 0", "CapEff": "0000000000002000", "CapBnd": "0000000000002000", "NoNewPrivs": "1", "Seccomp": "2"}, // NET_RAW
	} {
		for line, value := range want {
			if got := c.Status(t, id, line); got != value {
				t.Errorf("%s: %s is %s, want %s", id, line, got, value)
			}
		}
	}

	l.pool("lan", "192.0.2.200-192.0.2.220")
	l.service("web")
	l.until("web has an address", func() bool { return l.addresses()["web"] != "" })
	vip := l.addresses()["web"]
	l.answered(vip, func(n string) bool { return n == nodeName(0) })
	for p, line := range map[*process]string{
		first:  `metallb_allocator_addresses_in_use_total{pool="lan"} 1`,
		second: fmt.Sprintf(`metallb_speaker_announced{ip="%s",node="node-0",protocol="layer2",service="default/web"} 1`, vip),
	} {
		l.until(line, func() bool { return p.shows(line + "\n") })
	}
	l.until("event about who announces", func() bool {
		list, err := l.admin.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			if e.Reason == "AddressAnnounced" && strings.Contains(e.Message, vip) && e.Source.Component == "fairway-announcer" {
				return true
			}
		}
		return false
	})
	for _, p := range []*process{first, second} {
		p.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // ctr hands it on
		<-p.done
		if p.err != nil {
			t.Errorf("asked to end: %v", p.err)
		}
		if s := p.text(); strings.Contains(s, "level=ERROR") || strings.Contains(s, "level=WARN") {
			t.Errorf("it complains:\n%s", s)
		}
	}
}
