package apiserver_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

func TestStart(t *testing.T) {
	begin := time.Now()
	s := apitest.Start(t)
	t.Logf("ready after %v", time.Since(begin))
	client := apitest.Client(t, s, apiserver.Admin())
	ctx := t.Context()
	svc, err := client.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if svc.Spec.ClusterIP == "" {
		t.Fatal("no ClusterIP")
	}
	for _, id := range []apiserver.Identity{apiserver.LB(), apiserver.DNS(), apiserver.Endpoints(), apiserver.Proxy(), apiserver.Controllers()} {
		if _, err := apitest.Client(t, s, id).CoreV1().Services("").List(ctx, metav1.ListOptions{}); err != nil {
			t.Errorf("%s: %v", id.User, err)
		}
	}
}
