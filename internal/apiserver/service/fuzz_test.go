package service

import (
	"context"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/core"
)

// decode reads a request body as the handlers do: JSON, YAML or protobuf of any version the scheme knows, with defaults.
func decode(body []byte) (*core.Service, bool) {
	obj, _, err := legacyscheme.Codecs.UniversalDecoder(core.SchemeGroupVersion).Decode(body, nil, &core.Service{})
	svc, ok := obj.(*core.Service)
	return svc, ok && err == nil
}

// odd are values that fields of a Service may be, or nearly.
var odd = []any{
	nil, "", "None", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "Local", "Cluster", "SingleStack", "PreferDualStack", "RequireDualStack",
	"IPv4", "IPv6", "TCP", "UDP", "ClientIP", "10.96.0.9", "10.96.000.009", "fd00:10:96::9", "::ffff:10.96.0.9", "FD00:10:96:0::9", "10.0.0.0/8", "a.b", "Ä",
	"s", "kubernetes.io/x", true, false, 0, -1, 1, 80, 30009, 30010, 65536, 1 << 40, 1.5, []any{}, map[string]any{},
	[]any{"10.96.0.9"}, []any{"fd00:10:96::9", "10.96.0.9"}, []any{"None"}, []any{"IPv6", "IPv4"}, []any{"IPv6"}, map[string]any{"a": "b"},
	[]any{map[string]any{"name": "a", "port": 1}, map[string]any{"name": "b", "port": 1, "protocol": "UDP", "nodePort": 30009}},
}

// plausible are values that the fields of a spec often have.
var plausible = map[string][]any{
	"type":                          {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"},
	"clusterIP":                     {"", "None", "10.96.0.9", "fd00:10:96::9"},
	"clusterIPs":                    {[]any{"10.96.0.9"}, []any{"10.96.0.9", "fd00:10:96::9"}, []any{"None"}, []any{}},
	"ipFamilies":                    {[]any{"IPv4"}, []any{"IPv6"}, []any{"IPv4", "IPv6"}, []any{"IPv6", "IPv4"}, []any{}},
	"ipFamilyPolicy":                {"SingleStack", "PreferDualStack", "RequireDualStack"},
	"ports":                         {odd[len(odd)-1], []any{map[string]any{"port": 80, "nodePort": 30009}}, []any{map[string]any{"port": 80}}, []any{}},
	"selector":                      {nil, map[string]any{}, map[string]any{"a": "b"}},
	"externalName":                  {"example.com", "", "a."},
	"externalIPs":                   {[]any{"203.0.113.9"}, []any{}, []any{"2001:db8::1"}},
	"externalTrafficPolicy":         {"Local", "Cluster", ""},
	"internalTrafficPolicy":         {"Local", "Cluster", nil},
	"healthCheckNodePort":           {0, 30009, 30010},
	"allocateLoadBalancerNodePorts": {true, false, nil},
	"loadBalancerClass":             {"a/b", nil},
	"loadBalancerIP":                {"192.0.2.9", ""},
	"loadBalancerSourceRanges":      {[]any{"10.0.0.0/8"}, []any{}},
	"sessionAffinity":               {"None", "ClientIP"},
	"sessionAffinityConfig":         {nil, map[string]any{"clientIP": map[string]any{"timeoutSeconds": 5}}},
	"publishNotReadyAddresses":      {true, false},
	"trafficDistribution":           {"PreferClose", "PreferSameNode", nil},
}

// mutate changes one to four things in a JSON body: mostly plausible values of a Service's spec, but also odd ones anywhere, and
// missing ones. Other bodies are returned as they are.
func mutate(body []byte, rng *rand.Rand) []byte {
	var root map[string]any
	if json.Unmarshal(body, &root) != nil {
		return body
	}
	copyOf := func(v any) (out any) { // for it may be mutated again
		b, _ := json.Marshal(v)
		_ = json.Unmarshal(b, &out)
		return out
	}
	for range 1 + rng.IntN(4) {
		spec, ok := root["spec"].(map[string]any)
		if ok && rng.IntN(4) > 0 {
			names := slices.Sorted(maps.Keys(plausible))
			name := names[rng.IntN(len(names))]
			spec[name] = copyOf(plausible[name][rng.IntN(len(plausible[name]))])
			continue
		}
		var places []func() // changes that could be made
		var walk func(v any)
		walk = func(v any) {
			switch v := v.(type) {
			case map[string]any:
				for _, k := range slices.Sorted(maps.Keys(v)) {
					walk(v[k])
					if k != "apiVersion" && k != "kind" {
						places = append(places, func() { v[k] = copyOf(odd[rng.IntN(len(odd))]) }, func() { delete(v, k) })
					}
				}
			case []any:
				for i := range v {
					walk(v[i])
					places = append(places, func() { v[i] = copyOf(odd[rng.IntN(len(odd))]) })
				}
			}
		}
		walk(root)
		if len(places) > 0 {
			places[rng.IntN(len(places))]()
		}
	}
	out, err := json.Marshal(root)
	if err != nil {
		return body
	}
	return out
}

// bodies are request bodies to start from: every form, every rule.
func bodies(t testing.TB) [][]byte {
	var out [][]byte
	add := func(edits ...func(*corev1.Service)) {
		s := svc("s", edits...)
		s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	for _, f := range forms {
		add(f.become)
		add(f.become, withPolicy(prefer))
	}
	for _, r := range rules {
		add(r.edit)
	}
	return append(out, []byte(`apiVersion: v1
kind: Service
metadata: {generateName: a-, finalizers: [a/b], deletionTimestamp: "2020-01-01T00:00:00Z", uid: x, resourceVersion: "1"}
spec: {clusterIPs: ["", "None"], ipFamilies: ["", IPv6, IPv4], ports: [{port: 1, nodePort: 1, targetPort: ""}, {}]}
`), []byte("null"), []byte("{}"))
}

var statusBody = []byte(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1","hostname":"h"}]}}}`)

// FuzzService: whatever requests there are, nothing panics, what is stored is valid, and it holds exactly what is claimed.
func FuzzService(f *testing.F) {
	all := bodies(f)
	for i, b := range all {
		f.Add(b, all[(i*7+3)%len(all)], statusBody, uint64(i%2*i)) // every second one is mutated
	}
	c := newCluster(f)
	f.Fuzz(func(t *testing.T, create, update, status []byte, seed uint64) {
		c.requests(t, create, update, status, seed)
	})
}

// TestMutants is FuzzService with nothing but mutated Services, which mostly get past the decoder.
func TestMutants(t *testing.T) {
	c := newCluster(t)
	all := bodies(t)
	rng := rand.New(rand.NewPCG(*flagSeed, 2))
	n, stored := max(*flagOps, 1000), 0
	for range n {
		create, update, seed := all[rng.IntN(len(all))], all[rng.IntN(len(all))], 1+rng.Uint64()>>1
		if c.requests(t, create, update, statusBody, seed) {
			stored++
		}
		if t.Failed() {
			t.Fatalf("seed %d of\n%s\n%s", seed, create, update)
		}
	}
	t.Logf("%d of %d were stored", stored, n)
	if stored < n/10 {
		t.Errorf("%d of %d mutants were stored: too odd to test anything", stored, n)
	}
}

// requests creates a Service from one request body, updates it with another and its status with a third. Unless the seed
// is 0, all are mutated first. It reports whether the Service was created.
func (c *cluster) requests(t *testing.T, create, update, status []byte, seed uint64) bool {
	c.t = t
	if rng := rand.New(rand.NewPCG(seed, 1)); seed != 0 {
		create, update, status = mutate(create, rng), mutate(update, rng), mutate(status, rng)
	}
	svc, ok := decode(create)
	if !ok {
		return false
	}
	svc.Namespace = "default" // the handlers refuse any other than that of the URL
	obj, err := c.rest.Create(c.ctx, svc, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	checkFuzzError(t, err)
	if err != nil {
		c.checkAudit()
		return false
	}
	name := asService(obj).Name
	defer c.purge(t, name)
	c.checkStored(t, name)
	put := func(body []byte, update func(context.Context, string, rest.UpdatedObjectInfo, rest.ValidateObjectFunc, rest.ValidateObjectUpdateFunc, bool, *metav1.UpdateOptions) (runtime.Object, bool, error)) {
		svc, ok := decode(body)
		if !ok {
			return
		}
		svc.Namespace, svc.Name = "default", name
		_, _, err := update(c.ctx, name, rest.DefaultUpdatedObjectInfo(svc), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
		checkFuzzError(t, err)
		c.checkStored(t, name)
	}
	put(update, c.rest.Update)
	put(status, c.reg.status.Update)
	put(create, c.rest.Update)
	return true
}

// checkFuzzError: every refusal blames the request, and nothing else can go wrong here.
func checkFuzzError(t *testing.T, err error) {
	t.Helper()
	if err == nil || apierrors.IsInvalid(err) || apierrors.IsConflict(err) || apierrors.IsBadRequest(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
		return
	}
	t.Errorf("error %v (%T) is not the request's fault", err, err)
}

// checkStored checks that the Service as stored, if it is, is valid, and that claims are right.
func (c *cluster) checkStored(t *testing.T, name string) {
	t.Helper()
	c.checkAudit()
	svc, err := c.get(name)
	if apierrors.IsNotFound(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if errs := newStrategy.ValidateUpdate(c.ctx, svc, svc); len(errs) > 0 {
		t.Errorf("stored and not valid: %v\n%+v", errs, svc)
	}
	if errs := newStrategy.Validate(c.ctx, svc); len(errs) > 0 {
		t.Errorf("stored and not valid as new: %v\n%+v", errs, svc)
	}
	if needsClusterIP(svc) && !isHeadless(svc) && (len(svc.Spec.ClusterIPs) == 0 || len(svc.Spec.ClusterIPs) != len(svc.Spec.IPFamilies)) {
		t.Errorf("stored with addresses %v for families %v", svc.Spec.ClusterIPs, svc.Spec.IPFamilies)
	}
	if wantsNodePorts(svc) {
		for _, p := range svc.Spec.Ports {
			if p.NodePort == 0 {
				t.Errorf("stored without a node port: %+v", p)
			}
		}
	}
}

// purge deletes a Service, finalizers or not.
func (c *cluster) purge(t *testing.T, name string) {
	t.Helper()
	_ = c.delete(name)
	if _, err := c.get(name); err == nil {
		if _, err := c.edit(name, func(s *corev1.Service) { s.Finalizers = nil }); err != nil {
			t.Fatalf("cannot be deleted: %v", err)
		}
	}
	if n := len(c.services()); n != 0 {
		t.Fatalf("%d Services left", n)
	}
	c.checkAudit()
}
