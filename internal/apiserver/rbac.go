package apiserver

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// role is a row of the table of what Fairway's own parts may do: the
// ClusterRole of that name, bound to the user of the same name. The roles of
// all others are upstream's.
type role struct {
	name  string
	rules []rbacv1.PolicyRule
}

// Verbs that go together.
var (
	read   = []string{"get", "list", "watch"}
	write  = []string{"create", "update", "patch", "delete"}
	change = []string{"update", "patch"}
)

// roles are the least that each part needs.
var roles = []role{
	{userLB, []rbacv1.PolicyRule{
		allow(read, "", "services", "nodes", "pods", "namespaces"),
		allow(change, "", "services", "services/status"),
		allow(read, "discovery.k8s.io", "endpointslices"),
		allow(read, "fairway.dev", "*"),
		allow(write, "fairway.dev", "*"),
		allow(append([]string{"get", "list", "watch"}, write...), "coordination.k8s.io", "leases"),
		allow(read, "apiextensions.k8s.io", "customresourcedefinitions"),
		allow(write, "apiextensions.k8s.io", "customresourcedefinitions"),
		events, newEvents,
	}},
	{userDNS, []rbacv1.PolicyRule{
		allow(read, "", "services", "pods", "namespaces", "nodes"),
		allow(read, "discovery.k8s.io", "endpointslices"),
	}},
	{userEndpoints, []rbacv1.PolicyRule{
		allow(read, "", "services", "pods", "nodes", "namespaces", "endpoints"),
		allow(write, "", "endpoints"),
		// Addresses of its own choice in Endpoints are a right of their own.
		allow([]string{"create"}, "", "endpoints/restricted"),
		// An EndpointSlice that names its Service as owner blocks the deletion of that Service.
		allow([]string{"update"}, "", "services/finalizers"),
		allow(read, "discovery.k8s.io", "endpointslices"),
		allow(write, "discovery.k8s.io", "endpointslices"),
		allow([]string{"create"}, "discovery.k8s.io", "endpointslices/restricted"),
		events, newEvents,
	}},
}

var (
	events    = allow([]string{"create", "update", "patch"}, "", "events")
	newEvents = allow([]string{"create", "update", "patch"}, "events.k8s.io", "events")
)

func allow(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}

// ownPolicy turns the table into objects; policy.go stores them.
func ownPolicy() (clusterRoles []rbacv1.ClusterRole, bindings []rbacv1.ClusterRoleBinding) {
	for _, r := range roles {
		meta := metav1.ObjectMeta{
			Name:        r.name,
			Labels:      map[string]string{"app.kubernetes.io/part-of": "fairway"},
			Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
		}
		clusterRoles = append(clusterRoles, rbacv1.ClusterRole{ObjectMeta: meta, Rules: r.rules})
		bindings = append(bindings, rbacv1.ClusterRoleBinding{
			ObjectMeta: *meta.DeepCopy(),
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: r.name},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: r.name}},
		})
	}
	return clusterRoles, bindings
}
