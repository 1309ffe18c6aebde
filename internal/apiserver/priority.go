package apiserver

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
)

// installPriorityClasses has the server make system-node-critical and
// system-cluster-critical when it starts. Upstream's own hook waits a second first.
func installPriorityClasses(s *genericapiserver.GenericAPIServer) {
	s.AddPostStartHookOrDie("fairway/priority-classes", func(hook genericapiserver.PostStartHookContext) error {
		client, err := kubernetes.NewForConfig(hook.LoopbackClientConfig)
		if err != nil {
			return err
		}
		classes := client.SchedulingV1().PriorityClasses()
		var last error
		err = wait.PollUntilContextTimeout(hook, 50*time.Millisecond, policyLimit, true, func(ctx context.Context) (bool, error) {
			for _, class := range schedulingv1.SystemPriorityClasses() {
				// Create first: it fails on all starts but the first, but costs no more than Get.
				if _, last = classes.Create(ctx, class, metav1.CreateOptions{}); last != nil && !apierrors.IsAlreadyExists(last) {
					return false, nil
				}
			}
			return true, nil
		})
		if err != nil {
			return fmt.Errorf("system priority classes: %w", last)
		}
		return nil
	})
}
