package podspec

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"
)

// objects has the ConfigMap cm and the Secret sec of namespace ns.
type objects struct{}

func (objects) ConfigMap(_ context.Context, namespace, name string) (*v1.ConfigMap, error) {
	if namespace != "ns" || name != "cm" {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
	}
	return &v1.ConfigMap{Data: map[string]string{"key": "from-cm", "A": "cm's A", "not=ok": "x"}}, nil
}

func (objects) Secret(_ context.Context, namespace, name string) (*v1.Secret, error) {
	if namespace != "ns" || name != "sec" {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
	}
	return &v1.Secret{Data: map[string][]byte{"pw": []byte("hidden")}}, nil
}

func facts() Facts {
	service := func(namespace, name, ip string, port int32) *v1.Service {
		return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1.ServiceSpec{ClusterIP: ip, Ports: []v1.ServicePort{{Port: port, Protocol: v1.ProtocolTCP}}}}
	}
	return Facts{NodeName: "node-1", HostIPs: []netip.Addr{netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("fd00::b")},
		PodIPs:  []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd01::2")},
		Objects: objects{}, Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourceEphemeralStorage: resource.MustParse("1000")},
		Services: []*v1.Service{service("default", "kubernetes", "10.96.0.1", 443), service("ns", "my-web", "10.96.0.7", 80), service("ns", "headless", v1.ClusterIPNone, 80)}}
}

func pod() *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "uid", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"note": "n"}},
		Spec: v1.PodSpec{ServiceAccountName: "sa", NodeName: "node-1"}}
}

func local(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }

func TestEnvironment(t *testing.T) {
	fieldRef := func(path string) *v1.EnvVarSource {
		return &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: path}}
	}
	configKey := func(name, key string, optional *bool) *v1.EnvVarSource {
		return &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: local(name), Key: key, Optional: optional}}
	}
	secretKey := func(name, key string, optional *bool) *v1.EnvVarSource {
		return &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: local(name), Key: key, Optional: optional}}
	}
	yes := ptr.To(true)
	resources := v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1500m"), v1.ResourceMemory: resource.MustParse("64Mi")}}
	for _, test := range []struct {
		name string
		from []v1.EnvFromSource
		env  []v1.EnvVar
		want string // those asked for, Services' left out
		err  string
	}{
		{"plain", nil, []v1.EnvVar{{Name: "A", Value: "1"}, {Name: "B"}}, "A=1 B=", ""},
		{"a later one refers to an earlier one", nil, []v1.EnvVar{{Name: "B", Value: "$(A)"}, {Name: "A", Value: "1"}, {Name: "C", Value: "$(A)$(B)"}}, "B=$(A) A=1 C=1$(A)", ""},
		{"escaped", nil, []v1.EnvVar{{Name: "A", Value: "$$(B) $(none) $ $$"}}, "A=$(B) $(none) $ $", ""},
		{"refers to a Service's", nil, []v1.EnvVar{{Name: "A", Value: "http://$(MY_WEB_SERVICE_HOST):$(MY_WEB_SERVICE_PORT)"}}, "A=http://10.96.0.7:80", ""},
		{"twice", nil, []v1.EnvVar{{Name: "A", Value: "1"}, {Name: "A", Value: "2$(A)"}}, "A=21", ""},
		{"from a ConfigMap, names that cannot be left out", []v1.EnvFromSource{{Prefix: "P_", ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: local("cm")}}}, nil, "P_A=cm's A P_key=from-cm", ""},
		{"env wins over envFrom, in its place", []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: local("cm")}}}, []v1.EnvVar{{Name: "A", Value: "mine, was $(A)"}}, "A=mine, was cm's A key=from-cm", ""},
		{"from a Secret", []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: local("sec")}}}, nil, "pw=hidden", ""},
		{"from none", []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: local("none")}}}, nil, "", `configmaps "none" not found`},
		{"from none, which is allowed", []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: local("none"), Optional: yes}}, {SecretRef: &v1.SecretEnvSource{LocalObjectReference: local("none"), Optional: yes}}}, nil, "", ""},
		{"keys", nil, []v1.EnvVar{{Name: "A", ValueFrom: configKey("cm", "key", nil)}, {Name: "B", ValueFrom: secretKey("sec", "pw", nil)}, {Name: "C", Value: "$(B)"}}, "A=from-cm B=hidden C=hidden", ""},
		{"keys that are missing and may be", nil, []v1.EnvVar{{Name: "A", ValueFrom: configKey("cm", "x", yes)}, {Name: "B", ValueFrom: secretKey("none", "x", yes)}}, "", ""},
		{"a key that is missing", nil, []v1.EnvVar{{Name: "A", ValueFrom: configKey("cm", "x", nil)}}, "", "couldn't find key x in ConfigMap ns/cm"},
		{"a Secret that is missing", nil, []v1.EnvVar{{Name: "A", ValueFrom: secretKey("none", "x", nil)}}, "", `secrets "none" not found`},
		{"fields", nil, []v1.EnvVar{{Name: "A", ValueFrom: fieldRef("metadata.name")}, {Name: "B", ValueFrom: fieldRef("metadata.labels['app']")}, {Name: "C", ValueFrom: fieldRef("spec.nodeName")},
			{Name: "D", ValueFrom: fieldRef("status.podIPs")}, {Name: "E", ValueFrom: fieldRef("status.hostIP")}, {Name: "F", ValueFrom: fieldRef("spec.serviceAccountName")}, {Name: "G", ValueFrom: fieldRef("metadata.uid")}},
			"A=p B=web C=node-1 D=10.244.1.2,fd01::2 E=172.30.0.11 F=sa G=uid", ""},
		{"a field that is none", nil, []v1.EnvVar{{Name: "A", ValueFrom: fieldRef("spec.none")}}, "", "unsupported fieldPath: spec.none"},
		{"resources", nil, []v1.EnvVar{{Name: "A", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.cpu"}}},
			{Name: "B", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
			{Name: "C", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "requests.cpu", ContainerName: "other", Divisor: resource.MustParse("1m")}}}}, "A=2 B=64 C=250", ""},
		{"no limit: the node's", nil, []v1.EnvVar{{Name: "A", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.memory", ContainerName: "other"}}},
			{Name: "B", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.ephemeral-storage"}}}, {Name: "C", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "requests.memory"}}}},
			"A=8589934592 B=1000 C=0", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := pod()
			p.Spec.Containers = []v1.Container{{Name: "c", EnvFrom: test.from, Env: test.env, Resources: resources},
				{Name: "other", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("250m")}}}}
			env, lookup, err := Environment(t.Context(), p, &p.Spec.Containers[0], facts())
			if err != nil || test.err != "" {
				if err == nil || test.err == "" || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want %q", err, test.err)
				}
				return
			}
			own := slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, "KUBERNETES_") || strings.HasPrefix(e, "MY_WEB_") })
			if got := strings.Join(own, " "); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			for _, e := range env {
				if name, value, _ := strings.Cut(e, "="); lookup[name] != value {
					t.Errorf("%s is %q for the command", e, lookup[name])
				}
			}
		})
	}
}

func TestServiceVariables(t *testing.T) {
	names := func(p *v1.Pod, c v1.Container) map[string]string {
		env, _, err := Environment(t.Context(), p, &c, facts())
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, e := range env {
			name, value, _ := strings.Cut(e, "=")
			out[name] = value
		}
		return out
	}
	got := names(pod(), v1.Container{Env: []v1.EnvVar{{Name: "MY_WEB_SERVICE_PORT", Value: "mine"}}})
	for name, want := range map[string]string{"MY_WEB_SERVICE_HOST": "10.96.0.7", "MY_WEB_SERVICE_PORT": "mine", "MY_WEB_PORT": "tcp://10.96.0.7:80", "KUBERNETES_SERVICE_HOST": "10.96.0.1"} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if _, there := got["HEADLESS_SERVICE_HOST"]; there {
		t.Error("a Service without an address has variables")
	}
	p := pod()
	p.Spec.EnableServiceLinks = ptr.To(false)
	got = names(p, v1.Container{})
	if got["MY_WEB_SERVICE_HOST"] != "" || got["KUBERNETES_SERVICE_HOST"] == "" {
		t.Errorf("without links: %v", got)
	}
}

func TestExpand(t *testing.T) {
	got := Expand([]string{"$(A)", "x$(A)y", "$$(A)", "$(B)"}, map[string]string{"A": "1"})
	if want := []string{"1", "x1y", "$(A)", "$(B)"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
