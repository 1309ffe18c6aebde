package apiserver_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"fairway.dev/fairway/internal/testenv"
)

// backendAddress is what servers that the API server dials listen on: Kubernetes takes no loopback address
// for one of a Pod, a Node or an endpoint.
const backendAddress = "192.0.2.1"

// onMachine has the test run in a namespace of its own, which has backendAddress. It answers false in the process
// that has nothing more to do.
func onMachine(t *testing.T) bool {
	t.Helper()
	return testenv.Inside(t, func(h *testenv.Host) { h.AddAddr(t, "lo", backendAddress+"/32") })
}

// listenBackend returns an HTTP server on backendAddress that is still to be
// started, and its port.
func listenBackend(t *testing.T, h http.Handler) (*httptest.Server, int32) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(backendAddress, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	t.Cleanup(s.Close)
	return s, int32(l.Addr().(*net.TCPAddr).Port)
}

// createPod makes a Pod that has backendAddress, as if a node ran it.
func createPod(t *testing.T, c kubernetes.Interface, ns, name string) {
	t.Helper()
	ctx := t.Context()
	accounts := c.CoreV1().ServiceAccounts(ns)
	if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	pod, err := c.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "host"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, backendAddress
	pod.Status.PodIPs = []corev1.PodIP{{IP: backendAddress}}
	if _, err := c.CoreV1().Pods(ns).UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// createService makes a Service without a selector. Its ports are named, numbered from 80 on.
func createService(t *testing.T, c kubernetes.Interface, ns, name string, portNames ...string) {
	t.Helper()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for i, p := range portNames {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: p, Port: int32(80 + i)})
	}
	if _, err := c.CoreV1().Services(ns).Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// createSlice gives the Service an endpoint: that Pod of createPod, with the ports of these names.
func createSlice(t *testing.T, c kubernetes.Interface, ns, service, pod string, ready bool, ports map[string]int32) {
	t.Helper()
	slice := &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{GenerateName: service + "-", Labels: map[string]string{discovery.LabelServiceName: service}},
		AddressType: discovery.AddressTypeIPv4,
		Endpoints: []discovery.Endpoint{{
			Addresses: []string{backendAddress}, Conditions: discovery.EndpointConditions{Ready: &ready},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: pod},
		}},
	}
	for name, port := range ports {
		slice.Ports = append(slice.Ports, discovery.EndpointPort{Name: ptr.To(name), Port: ptr.To(port), Protocol: ptr.To(corev1.ProtocolTCP)})
	}
	if _, err := c.DiscoveryV1().EndpointSlices(ns).Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}
