package node_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/testenv"
)

// What a Pod's specification asks for is what its containers find.
func TestPodSpec(t *testing.T) {
	if !testenv.Inside(t, nil) {
		return
	}
	c := newCluster(t, 1)
	ctx := t.Context()
	core := c.CoreV1()
	mustNot := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mustNot(core.ConfigMaps("default").Create(ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm"}, Data: map[string]string{"key": "from-cm", "sub": "subbed"}}, metav1.CreateOptions{}))
	mustNot(core.Secrets("default").Create(ctx, &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "sec"}, Data: map[string][]byte{"pw": []byte("hidden")}}, metav1.CreateOptions{}))
	mustNot(core.Services("default").Create(ctx, &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "my-web"}, Spec: v1.ServiceSpec{Ports: []v1.ServicePort{{Name: "http", Port: 81}}}}, metav1.CreateOptions{}))
	svc, err := core.Services("default").Get(ctx, "my-web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // Services' variables are those known at the start
	ref := func(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }
	grace := ptr.To(int64(5))

	t.Run("environment, volumes, files", func(t *testing.T) {
		host := t.TempDir()
		c.pod("full", v1.PodSpec{
			RestartPolicy: v1.RestartPolicyNever, Hostname: "named", Subdomain: "sub",
			HostAliases: []v1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"alias"}}},
			DNSConfig:   &v1.PodDNSConfig{Options: []v1.PodDNSConfigOption{{Name: "timeout", Value: ptr.To("1")}}},
			Volumes: []v1.Volume{
				{Name: "cm", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("cm")}}},
				{Name: "sec", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "sec", DefaultMode: ptr.To(int32(0o400))}}},
				{Name: "empty", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
				{Name: "mem", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
				{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: host}}},
				{Name: "down", VolumeSource: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: []v1.DownwardAPIVolumeFile{
					{Path: "labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
			},
			Containers: []v1.Container{{
				EnvFrom: []v1.EnvFromSource{{Prefix: "P_", ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: ref("cm")}}},
				Env: []v1.EnvVar{
					{Name: "IP", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
					{Name: "NODE", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}},
					{Name: "PW", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: ref("sec"), Key: "pw"}}},
					{Name: "LIMIT", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.memory"}}},
					{Name: "BOTH", Value: "$(NODE)/$(PW)"},
				},
				Resources: v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceMemory: resource.MustParse("64Mi"), v1.ResourceCPU: resource.MustParse("500m")}},
				Command: sh(`echo env $P_key $IP $NODE $BOTH $LIMIT $MY_WEB_SERVICE_HOST:$MY_WEB_SERVICE_PORT
					echo vol $(cat /fw-mnt/cm/key) $(cat /fw-mnt/sec/pw) $(stat -Lc %a /fw-mnt/sec/pw) $(cat /fw-mnt/sub) $(cat /fw-mnt/down/labels)
					echo x > /fw-mnt/empty/x; echo y > /fw-mnt/host/y; stat -fc 'mem %T' /fw-mnt/mem
					echo files $(hostname) $(grep -c alias /etc/hosts) $(grep named.sub.default.svc.cluster.local /etc/hosts | wc -l) $(grep nameserver /etc/resolv.conf) $(grep -o 'ndots:5 timeout:1' /etc/resolv.conf)
					echo sa $(wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token) $(cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)
					touch /fw-mnt/cm/new || echo cm-is-read-only`),
				VolumeMounts: []v1.VolumeMount{{Name: "cm", MountPath: "/fw-mnt/cm"}, {Name: "sec", MountPath: "/fw-mnt/sec"}, {Name: "empty", MountPath: "/fw-mnt/empty"},
					{Name: "mem", MountPath: "/fw-mnt/mem"}, {Name: "host", MountPath: "/fw-mnt/host"}, {Name: "down", MountPath: "/fw-mnt/down"},
					{Name: "cm", MountPath: "/fw-mnt/sub", SubPath: "sub"}},
			}},
		})
		p := c.until("full", "ended", ended)
		log := c.logs("full", v1.PodLogOptions{})
		for _, want := range []string{
			"env from-cm " + p.Status.PodIP + " node-1 node-1/hidden 67108864 " + svc.Spec.ClusterIP + ":81\n",
			`vol from-cm hidden 400 subbed app="full"`, "mem tmpfs", "files named 1 2 nameserver 10.96.0.10 ndots:5 timeout:1", " default\n", "cm-is-read-only",
		} {
			if !strings.Contains(log, want) {
				t.Errorf("log lacks %q:\n%s", want, log)
			}
		}
		if b, _ := os.ReadFile(host + "/y"); string(b) != "y\n" {
			t.Error("nothing came through the hostPath")
		}
		if p.Status.Phase != v1.PodSucceeded {
			t.Errorf("phase %s", p.Status.Phase)
		}
	})

	t.Run("init containers and sidecars", func(t *testing.T) {
		always := v1.ContainerRestartPolicyAlways
		dir := t.TempDir()
		say := func(s string) string { return "echo " + s + " >> " + dir + "/order; " }
		c.pod("inits", v1.PodSpec{RestartPolicy: v1.RestartPolicyNever, TerminationGracePeriodSeconds: grace,
			InitContainers: []v1.Container{
				{Name: "first", Command: sh(say("first") + "sleep 0.1")},
				{Name: "side", RestartPolicy: &always, Command: sh(say("side") + "trap 'echo side-ends >> " + dir + "/order; exit 0' TERM; while :; do sleep 0.02; done"),
					StartupProbe: &v1.Probe{PeriodSeconds: 1, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: sh("grep -q side " + dir + "/order")}}}},
				{Name: "second", Command: sh(say("second"))},
			},
			Containers: []v1.Container{{Name: "main", Command: sh(say("main") + "sleep 0.2")}}})
		p := c.until("inits", "ended", ended)
		b, _ := os.ReadFile(dir + "/order")
		if got := strings.Join(strings.Fields(string(b)), " "); got != "first side second main side-ends" || p.Status.Phase != v1.PodSucceeded {
			t.Errorf("order %q, phase %s", got, p.Status.Phase)
		}
		c.pod("initfail", v1.PodSpec{RestartPolicy: v1.RestartPolicyNever, InitContainers: []v1.Container{{Name: "i", Command: sh("exit 1")}}, Containers: []v1.Container{{Command: sh("true")}}})
		if p := c.until("initfail", "ended", ended); p.Status.Phase != v1.PodFailed || p.Status.ContainerStatuses[0].State.Waiting == nil {
			t.Errorf("status %+v", p.Status)
		}
	})

	t.Run("restarts with back-off", func(t *testing.T) {
		c.pod("crash", v1.PodSpec{TerminationGracePeriodSeconds: grace, Containers: []v1.Container{{Command: sh("echo life; echo words > /dev/termination-log; sleep 0.3; exit 2")}}})
		p := c.until("crash", "in back-off", func(p *v1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff"
		})
		s := p.Status.ContainerStatuses[0]
		if s.RestartCount != 1 || s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != 2 || s.LastTerminationState.Terminated.Message != "words\n" || p.Status.Phase != v1.PodRunning {
			t.Errorf("phase %s, status %+v", p.Status.Phase, s)
		}
		if got := c.logs("crash", v1.PodLogOptions{Previous: true}); got != "life\n" {
			t.Errorf("previous log %q", got)
		}
		c.pod("nocommand", v1.PodSpec{TerminationGracePeriodSeconds: grace, Containers: []v1.Container{{Command: []string{"/no/such/command"}}}})
		c.until("nocommand", "failing to start", func(p *v1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].RestartCount > 0
		})
		c.pod("noimage", v1.PodSpec{TerminationGracePeriodSeconds: grace, Containers: []v1.Container{{Image: "nginx"}}})
		c.until("noimage", "saying what is missing", func(p *v1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && strings.Contains(p.Status.ContainerStatuses[0].State.Waiting.Message, "apt-get install containerd")
		})
		c.pod("noconfig", v1.PodSpec{TerminationGracePeriodSeconds: grace, Containers: []v1.Container{{Command: sh("true"), EnvFrom: []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: ref("none")}}}}}})
		c.until("noconfig", "in error", func(p *v1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
		})
		for _, name := range []string{"crash", "nocommand", "noimage", "noconfig"} {
			c.delete(name)
		}
		for _, name := range []string{"crash", "nocommand", "noimage", "noconfig"} {
			c.gone(name)
		}
	})

	t.Run("probes and gates", func(t *testing.T) {
		dir := t.TempDir()
		exec := func(script string) v1.ProbeHandler { return v1.ProbeHandler{Exec: &v1.ExecAction{Command: sh(script)}} }
		c.pod("probed", v1.PodSpec{TerminationGracePeriodSeconds: grace, ReadinessGates: []v1.PodReadinessGate{{ConditionType: "example.com/gate"}},
			Containers: []v1.Container{{Command: sh("exec sleep 1000"),
				ReadinessProbe: &v1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: exec("test -e " + dir + "/ready")},
				LivenessProbe:  &v1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: exec("test ! -e " + dir + "/dead")}}}})
		c.until("probed", "running", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodRunning })
		os.WriteFile(dir+"/ready", nil, 0o644) //nolint:errcheck
		p := c.until("probed", "ready but for the gate", func(p *v1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready
		})
		if ready(p) {
			t.Error("ready without its gate")
		}
		_, err := core.Pods("default").Patch(ctx, "probed", types.StrategicMergePatchType, []byte(`{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}`), metav1.PatchOptions{}, "status")
		if err != nil {
			t.Fatal(err)
		}
		c.until("probed", "ready", ready)
		os.Remove(dir + "/ready") //nolint:errcheck
		c.until("probed", "not ready", func(p *v1.Pod) bool { return !ready(p) })
		os.WriteFile(dir+"/dead", nil, 0o644) //nolint:errcheck
		c.until("probed", "restarted", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount > 0 })
		os.Remove(dir + "/dead") //nolint:errcheck
	})

	t.Run("hooks and signals", func(t *testing.T) {
		dir := t.TempDir()
		c.pod("hooked", v1.PodSpec{TerminationGracePeriodSeconds: ptr.To(int64(30)), Containers: []v1.Container{{
			Command: sh("trap 'echo term >> " + dir + "/order; exit 0' TERM; while :; do sleep 0.02; done"),
			Lifecycle: &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: sh("echo started >> " + dir + "/order")}},
				PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: sh("sleep 0.2; echo stopping >> " + dir + "/order")}}}}}})
		c.until("hooked", "ready", ready)
		begin := time.Now()
		c.delete("hooked")
		c.gone("hooked")
		b, _ := os.ReadFile(dir + "/order")
		if got := strings.Join(strings.Fields(string(b)), " "); got != "started stopping term" {
			t.Errorf("order %q after %v", got, time.Since(begin))
		}
	})

	t.Run("deadline, hostNetwork, hostPort", func(t *testing.T) {
		c.pod("late", v1.PodSpec{ActiveDeadlineSeconds: ptr.To(int64(1)), TerminationGracePeriodSeconds: ptr.To(int64(0)), Containers: []v1.Container{{Command: sh("sleep 1000")}}})
		if p := c.until("late", "ended", ended); p.Status.Reason != "DeadlineExceeded" || p.Status.Phase != v1.PodFailed {
			t.Errorf("status %+v", p.Status)
		}
		c.pod("hostnet", v1.PodSpec{HostNetwork: true, TerminationGracePeriodSeconds: grace, Containers: []v1.Container{{Command: []string{"python3", "-m", "http.server", "8082", "--directory", "/etc"}}}})
		if p := c.until("hostnet", "ready", ready); p.Status.PodIP != "172.30.0.11" {
			t.Errorf("Pod address %s", p.Status.PodIP)
		}
		c.pod("hostport", v1.PodSpec{TerminationGracePeriodSeconds: grace, Containers: []v1.Container{{Command: []string{"python3", "-m", "http.server", "80", "--directory", "/etc"},
			Ports: []v1.ContainerPort{{ContainerPort: 80, HostPort: 8083}}}}})
		c.until("hostport", "ready", ready)
		for _, port := range []int{8082, 8083} {
			c.eventually("answer", func() error {
				_, err := get(fmt.Sprintf("172.30.0.11:%d/hostname", port))
				return err
			})
		}
	})
}
