package apiserver

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
)

// installPriorityClasses has the server make system-node-critical and
// system-cluster-critical when it starts. Upstream's own hook waits a second first.
func installPriorityClasses(s *genericapiserver.GenericAPIServer, client kubernetes.Interface, fail func(error)) {
	classes := client.SchedulingV1().PriorityClasses()
	writeAtStart(s, "fairway/priority-classes", 50*time.Millisecond, fail, func(ctx context.Context) error {
		for _, class := range schedulingv1.SystemPriorityClasses() {
			// Create first: it fails on all starts but the first, but costs no more than Get.
			if _, err := classes.Create(ctx, class, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("system priority classes: %w", err)
			}
		}
		return nil
	})
}
