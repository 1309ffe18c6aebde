package service

import (
	"context"
	"encoding/json"
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

// FuzzService creates a Service from one request body, updates it with another and its status with a third. Whatever they are: nothing panics,
// what is stored is valid, and holds exactly what is claimed.
func FuzzService(f *testing.F) {
	body := func(edits ...func(*corev1.Service)) []byte {
		s := svc("s", edits...)
		s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	for _, from := range forms {
		for _, to := range forms {
			f.Add(body(from.become), body(to.become), []byte(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"}]}}}`))
		}
	}
	for _, r := range rules {
		f.Add(body(r.edit), body(r.edit, withPolicy(prefer)), body(r.edit))
	}
	f.Add([]byte(`apiVersion: v1
kind: Service
metadata: {generateName: a-, finalizers: [a/b], deletionTimestamp: "2020-01-01T00:00:00Z", uid: x, resourceVersion: "1"}
spec: {clusterIPs: ["", "None"], ipFamilies: ["", IPv6, IPv4], ports: [{port: 1, nodePort: 1, targetPort: ""}, {}]}
`), []byte("null"), []byte("{}"))

	c := newCluster(f)
	f.Fuzz(func(t *testing.T, create, update, status []byte) {
		c.t = t
		svc, ok := decode(create)
		if !ok {
			return
		}
		svc.Namespace = "default" // the handlers refuse any other than that of the URL
		obj, err := c.rest.Create(c.ctx, svc, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
		checkFuzzError(t, err)
		if err != nil {
			c.checkAudit()
			return
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
	})
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
