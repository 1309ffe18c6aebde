package apiserver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

const (
	// policyHook is the name under which /readyz tells whether the policy is in the store.
	policyHook = "fairway/policy"
	// policyWriters is how many objects are written at once. etcd commits
	// what arrives together with one fsync.
	policyWriters = 16
	// policyLimit is how long the policy, or anything else that a start writes, may take.
	policyLimit = 30 * time.Second
)

// installPolicy has the server put roles and bindings into the store when it
// starts: upstream's and those of rbac.go. What is there already only gets what
// it lacks, unless it is annotated to be left alone. Upstream's own hook does the same
// one object at a time, after a wait of a second.
func installPolicy(s *genericapiserver.GenericAPIServer, client kubernetes.Interface, fail func(error)) {
	writeAtStart(s, policyHook, 100*time.Millisecond, fail, func(ctx context.Context) error {
		if err := writePolicy(ctx, client); err != nil {
			return fmt.Errorf("roles and bindings: %w", err)
		}
		return nil
	})
}

// writeAtStart has the server call write when it starts, every interval until
// it succeeds; it is not ready before. If that is not so within policyLimit, fail gets the
// last error. The hook itself never fails: upstream would end the process.
func writeAtStart(s *genericapiserver.GenericAPIServer, name string, interval time.Duration, fail func(error), write func(context.Context) error) {
	s.AddPostStartHookOrDie(name, func(hook genericapiserver.PostStartHookContext) error {
		var last error
		err := wait.PollUntilContextTimeout(hook, interval, policyLimit, true, func(ctx context.Context) (bool, error) {
			last = write(ctx)
			return last == nil, nil
		})
		if err != nil && hook.Err() == nil {
			fail(fmt.Errorf("%s: not in the store within %v: %w", name, policyLimit, last))
			<-hook.Done()
		}
		return nil
	})
}

// writePolicy makes the store hold every role and binding.
func writePolicy(ctx context.Context, client kubernetes.Interface) error {
	rbac := client.RbacV1()
	namespaces := client.CoreV1().Namespaces()
	all := metav1.ListOptions{}
	roles, err := rbac.ClusterRoles().List(ctx, all)
	if err != nil {
		return err
	}
	bindings, err := rbac.ClusterRoleBindings().List(ctx, all)
	if err != nil {
		return err
	}
	roleClient := &knownRoles{ClusterRoleModifier: reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()}}
	for i := range roles.Items {
		roleClient.put(roles.Items[i].Name, &roles.Items[i])
	}
	bindingClient := &knownBindings{ClusterRoleBindingClientAdapter: reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()}}
	for i := range bindings.Items {
		bindingClient.put(bindings.Items[i].Name, &bindings.Items[i])
	}

	group, _ := errgroup.WithContext(ctx)
	group.SetLimit(policyWriters)
	role := func(owner reconciliation.RuleOwner, client reconciliation.RuleOwnerModifier) {
		group.Go(func() error {
			return retry.OnError(retry.DefaultBackoff, retriable, func() error {
				o := reconciliation.ReconcileRoleOptions{Role: owner, Client: client, Confirm: true}
				_, err := o.Run()
				return err
			})
		})
	}
	binding := func(b reconciliation.RoleBinding, client reconciliation.RoleBindingModifier) {
		group.Go(func() error {
			return retry.OnError(retry.DefaultBackoff, retriable, func() error {
				o := reconciliation.ReconcileRoleBindingOptions{RoleBinding: b, Client: client, Confirm: true}
				_, err := o.Run()
				return err
			})
		})
	}

	own := ownPolicy()
	for _, list := range [][]rbacv1.ClusterRole{bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles(), own.clusterRoles} {
		for i := range list {
			role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &list[i]}, roleClient)
		}
	}
	for _, list := range [][]rbacv1.ClusterRoleBinding{bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings(), own.clusterRoleBindings} {
		for i := range list {
			binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &list[i]}, bindingClient)
		}
	}
	for _, list := range append(slices.Collect(maps.Values(bootstrappolicy.NamespaceRoles())), own.roles) {
		for i := range list {
			role(reconciliation.RoleRuleOwner{Role: &list[i]}, reconciliation.RoleModifier{Client: rbac, NamespaceClient: namespaces})
		}
	}
	for _, list := range append(slices.Collect(maps.Values(bootstrappolicy.NamespaceRoleBindings())), own.roleBindings) {
		for i := range list {
			binding(reconciliation.RoleBindingAdapter{RoleBinding: &list[i]}, reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: namespaces})
		}
	}
	return group.Wait()
}

// retriable tells whether to try again at once: somebody else, such as a
// second server, was writing the same object.
func retriable(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsAlreadyExists(err)
}

// snapshot answers the first question about each name from a list that was
// read in one request, and sends later ones, which come after a failed write,
// to the server.
type snapshot[T any] struct {
	mu    sync.Mutex
	items map[string]T
	asked map[string]bool
}

func (s *snapshot[T]) put(name string, item T) {
	if s.items == nil {
		s.items, s.asked = map[string]T{}, map[string]bool{}
	}
	s.items[name] = item
}

// first returns what the list had under name, and whether this is the first question.
func (s *snapshot[T]) first(name string) (item T, found, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[name] {
		return item, false, false
	}
	if s.asked == nil {
		s.asked = map[string]bool{}
	}
	s.asked[name] = true
	item, found = s.items[name]
	return item, found, true
}

type knownRoles struct {
	reconciliation.ClusterRoleModifier
	snapshot[*rbacv1.ClusterRole]
}

func (k *knownRoles) Get(namespace, name string) (reconciliation.RuleOwner, error) {
	role, found, first := k.first(name)
	switch {
	case found:
		return reconciliation.ClusterRoleRuleOwner{ClusterRole: role}, nil
	case first:
		return nil, apierrors.NewNotFound(rbacv1.Resource("clusterroles"), name)
	}
	return k.ClusterRoleModifier.Get(namespace, name)
}

type knownBindings struct {
	reconciliation.ClusterRoleBindingClientAdapter
	snapshot[*rbacv1.ClusterRoleBinding]
}

func (k *knownBindings) Get(namespace, name string) (reconciliation.RoleBinding, error) {
	b, found, first := k.first(name)
	switch {
	case found:
		return reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: b}, nil
	case first:
		return nil, apierrors.NewNotFound(rbacv1.Resource("clusterrolebindings"), name)
	}
	return k.ClusterRoleBindingClientAdapter.Get(namespace, name)
}
