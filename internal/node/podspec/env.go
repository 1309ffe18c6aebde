// Package podspec turns a Pod as the API has it into what a runtime starts:
// environment, mounts, users, limits, the hosts file and resolv.conf.
//
// In go the Pod and the objects that it refers to, out come values. It changes
// nothing.
package podspec

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/pkg/kubelet/envvars"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// Objects reads what environment variables refer to.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
}

// Facts are what a Pod does not know of itself.
type Facts struct {
	NodeName string
	HostIPs  []netip.Addr
	PodIPs   []netip.Addr
	Services []*v1.Service // of the Pod's namespace and default/kubernetes
	Objects  Objects
	// Allocatable is what Pods may have of the node: the limit of containers that
	// have none, as far as a resourceFieldRef is concerned.
	Allocatable v1.ResourceList
}

// Environment resolves a container's variables in the order upstream does:
// envFrom, then env (which may refer to earlier ones and to Services' by
// $(NAME)), then the Services' that nothing has overridden. The result is
// "NAME=value"; lookup expands $(NAME) in the command.
func Environment(ctx context.Context, pod *v1.Pod, c *v1.Container, f Facts) (env []string, lookup map[string]string, err error) {
	services := serviceVars(pod, f.Services)
	result := map[string]string{}
	var order []string
	set := func(name, value string) {
		if _, known := result[name]; !known {
			order = append(order, name)
		}
		result[name] = value
	}
	for _, from := range c.EnvFrom {
		data, err := envFrom(ctx, pod, from, f.Objects)
		if err != nil {
			return nil, nil, err
		}
		for _, k := range sortedKeys(data) {
			name := from.Prefix + k
			if len(utilvalidation.IsRelaxedEnvVarName(name)) == 0 {
				set(name, data[k])
			}
		}
	}
	mapping := expansion.MappingFuncFor(result, services)
	for _, e := range c.Env {
		value := e.Value
		if value != "" {
			value = expansion.Expand(value, mapping)
		} else if e.ValueFrom != nil {
			var skip bool
			value, skip, err = valueFrom(ctx, pod, c, e.ValueFrom, f)
			if err != nil {
				return nil, nil, err
			}
			if skip {
				continue
			}
		}
		set(e.Name, value)
	}
	for _, name := range sortedKeys(services) {
		if _, known := result[name]; !known {
			set(name, services[name])
		}
	}
	for _, name := range order {
		env = append(env, name+"="+result[name])
	}
	return env, result, nil
}

// Expand replaces $(NAME) in a command.
func Expand(list []string, lookup map[string]string) []string {
	mapping := expansion.MappingFuncFor(lookup)
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = expansion.Expand(s, mapping)
	}
	return out
}

// serviceVars are WEB_SERVICE_HOST and its kin, and default/kubernetes' always.
func serviceVars(pod *v1.Pod, services []*v1.Service) map[string]string {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	var use []*v1.Service
	names := map[string]bool{}
	// The Pod's own namespace wins over default/kubernetes.
	for _, own := range []bool{true, false} {
		for _, s := range services {
			if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone || (s.Namespace == pod.Namespace) != own {
				continue
			}
			master := s.Namespace == metav1Default && s.Name == "kubernetes"
			if (master || own && links) && !names[s.Name] {
				names[s.Name] = true
				use = append(use, s)
			}
		}
	}
	out := map[string]string{}
	for _, e := range envvars.FromServices(use) {
		out[e.Name] = e.Value
	}
	return out
}

const metav1Default = "default"

func envFrom(ctx context.Context, pod *v1.Pod, from v1.EnvFromSource, o Objects) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		cm, err := o.ConfigMap(ctx, pod.Namespace, from.ConfigMapRef.Name)
		if apierrors.IsNotFound(err) && from.ConfigMapRef.Optional != nil && *from.ConfigMapRef.Optional {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		s, err := o.Secret(ctx, pod.Namespace, from.SecretRef.Name)
		if apierrors.IsNotFound(err) && from.SecretRef.Optional != nil && *from.SecretRef.Optional {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		out := map[string]string{}
		for k, v := range s.Data {
			out[k] = string(v)
		}
		return out, nil
	}
	return nil, nil
}

func valueFrom(ctx context.Context, pod *v1.Pod, c *v1.Container, from *v1.EnvVarSource, f Facts) (value string, skip bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = field(pod, from.FieldRef.FieldPath, f)
	case from.ResourceFieldRef != nil:
		if name := from.ResourceFieldRef.ContainerName; name == "" || name == c.Name {
			c = c.DeepCopy()
			resource.MergeContainerResourceLimits(c, f.Allocatable)
			value, err = resource.ExtractContainerResourceValue(from.ResourceFieldRef, c)
		} else {
			value, err = resource.ExtractResourceValueByContainerNameAndNodeAllocatable(from.ResourceFieldRef, pod, name, f.Allocatable)
		}
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		optional := ref.Optional != nil && *ref.Optional
		cm, err := f.Objects.ConfigMap(ctx, pod.Namespace, ref.Name)
		if err != nil {
			return "", optional && apierrors.IsNotFound(err), ignoreIf(optional && apierrors.IsNotFound(err), err)
		}
		v, ok := cm.Data[ref.Key]
		if !ok && !optional {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return v, !ok, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		optional := ref.Optional != nil && *ref.Optional
		s, err := f.Objects.Secret(ctx, pod.Namespace, ref.Name)
		if err != nil {
			return "", optional && apierrors.IsNotFound(err), ignoreIf(optional && apierrors.IsNotFound(err), err)
		}
		v, ok := s.Data[ref.Key]
		if !ok && !optional {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return string(v), !ok, nil
	default:
		err = errors.New("valueFrom: of a kind that Fairway's nodes do not know (known: fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef)")
	}
	return value, false, err
}

func ignoreIf(ignore bool, err error) error {
	if ignore {
		return nil
	}
	return err
}

// field answers a fieldRef; addresses are known before the Pod's status has them.
func field(pod *v1.Pod, path string, f Facts) (string, error) {
	join := func(addrs []netip.Addr) string {
		var s []string
		for _, a := range addrs {
			s = append(s, a.String())
		}
		return strings.Join(s, ",")
	}
	first := func(addrs []netip.Addr) string {
		if len(addrs) == 0 {
			return ""
		}
		return addrs[0].String()
	}
	switch path {
	case "spec.nodeName":
		return f.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		return first(f.PodIPs), nil
	case "status.podIPs":
		return join(f.PodIPs), nil
	case "status.hostIP":
		return first(f.HostIPs), nil
	case "status.hostIPs":
		return join(f.HostIPs), nil
	}
	return fieldpath.ExtractFieldPathAsString(pod, path)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
