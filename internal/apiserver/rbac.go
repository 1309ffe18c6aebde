package apiserver

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// role is a row of the table of what Fairway's own parts may do: a role named
// after the user that has it. The roles of all others are upstream's.
type role struct {
	user string
	// namespace is where the rules hold; empty means everywhere.
	namespace string
	rules     []rbacv1.PolicyRule
}

// Verbs that go together.
var (
	read  = []string{"get", "list", "watch"}
	write = []string{"create", "update", "patch", "delete"}
	tell  = []string{"create", "update", "patch"} // what recorders of events do
)

// roles are the least that each part needs.
var roles = []role{
	{user: userLB, rules: []rbacv1.PolicyRule{
		allow(read, "", "services", "nodes", "namespaces"),
		allow([]string{"update", "patch"}, "", "services", "services/status"),
		allow(read, "discovery.k8s.io", "endpointslices"),
		allow(append([]string{"patch"}, read...), "fairway.dev", "ippools"),
		allow(append([]string{"create"}, read...), "fairway.dev", "announcers"),
		allow([]string{"update", "patch"}, "fairway.dev", "ippools/status", "announcers/status"),
		allow(tell, "", "events"), allow(tell, "events.k8s.io", "events"),
	}},
	{user: userLB, namespace: metav1.NamespaceSystem, rules: []rbacv1.PolicyRule{
		allow([]string{"create"}, "coordination.k8s.io", "leases"),
		{Verbs: []string{"get", "update", "patch"}, APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: []string{"fairway-lb"}},
	}},
	{user: userDNS, rules: []rbacv1.PolicyRule{
		allow(read, "", "services", "pods", "namespaces"),
		allow(read, "discovery.k8s.io", "endpointslices"),
	}},
	{user: userEndpoints, rules: []rbacv1.PolicyRule{
		allow(read, "", "services", "pods", "nodes", "namespaces", "endpoints"),
		allow(write, "", "endpoints"),
		// Addresses of its own choice in Endpoints are a right of their own.
		allow([]string{"create"}, "", "endpoints/restricted"),
		// An EndpointSlice that names its Service as owner blocks the deletion of that Service.
		allow([]string{"update"}, "", "services/finalizers"),
		allow(read, "discovery.k8s.io", "endpointslices"),
		allow(write, "discovery.k8s.io", "endpointslices"),
		allow([]string{"create"}, "discovery.k8s.io", "endpointslices/restricted"),
		allow(tell, "", "events"), allow(tell, "events.k8s.io", "events"),
	}},
}

func allow(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}

// policy is roles and bindings; policy.go stores them.
type policy struct {
	clusterRoles        []rbacv1.ClusterRole
	clusterRoleBindings []rbacv1.ClusterRoleBinding
	roles               []rbacv1.Role
	roleBindings        []rbacv1.RoleBinding
}

// ownPolicy turns the table into objects.
func ownPolicy() policy {
	var p policy
	for _, r := range roles {
		meta := func() metav1.ObjectMeta {
			return metav1.ObjectMeta{
				Name: r.user, Namespace: r.namespace,
				Labels:      map[string]string{"app.kubernetes.io/part-of": "fairway"},
				Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
			}
		}
		subjects := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: r.user}}
		if r.namespace == "" {
			p.clusterRoles = append(p.clusterRoles, rbacv1.ClusterRole{ObjectMeta: meta(), Rules: r.rules})
			p.clusterRoleBindings = append(p.clusterRoleBindings, rbacv1.ClusterRoleBinding{
				ObjectMeta: meta(), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: r.user}, Subjects: subjects,
			})
			continue
		}
		p.roles = append(p.roles, rbacv1.Role{ObjectMeta: meta(), Rules: r.rules})
		p.roleBindings = append(p.roleBindings, rbacv1.RoleBinding{
			ObjectMeta: meta(), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: r.user}, Subjects: subjects,
		})
	}
	return p
}
