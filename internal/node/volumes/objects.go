package volumes

import (
	"context"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Objects reads what Pods refer to, remembering each object for a while: a
// hundred Pods of a node that share a ConfigMap cost one request a minute. It
// is safe for concurrent use.
type Objects struct {
	client kubernetes.Interface
	ttl    time.Duration

	mu    sync.Mutex
	items map[objectKey]*object
}

type objectKey struct{ kind, namespace, name string }

type object struct {
	mu      sync.Mutex // held while it is being read, so that others wait for the one request
	value   any
	fetched time.Time
}

// NewObjects reads through client, at most once per object and ttl.
func NewObjects(client kubernetes.Interface, ttl time.Duration) *Objects {
	return &Objects{client: client, ttl: ttl, items: map[objectKey]*object{}}
}

func get[T any](ctx context.Context, o *Objects, kind, namespace, name string, fetch func() (T, error)) (T, error) {
	key := objectKey{kind, namespace, name}
	o.mu.Lock()
	it := o.items[key]
	if it == nil {
		it = &object{}
		o.items[key] = it
		if len(o.items)%256 == 0 {
			o.forgetOld()
		}
	}
	o.mu.Unlock()
	it.mu.Lock()
	defer it.mu.Unlock()
	if v, ok := it.value.(T); ok && time.Since(it.fetched) < o.ttl {
		return v, nil
	}
	v, err := fetch()
	if err != nil {
		it.value = nil
		return v, err
	}
	it.value, it.fetched = v, time.Now()
	return v, nil
}

// forgetOld drops what nobody has asked for lately. The caller holds o.mu.
func (o *Objects) forgetOld() {
	for key, it := range o.items {
		if it.mu.TryLock() {
			if time.Since(it.fetched) > 10*o.ttl {
				delete(o.items, key)
			}
			it.mu.Unlock()
		}
	}
}

// ConfigMap returns a ConfigMap, not to be changed.
func (o *Objects) ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error) {
	return get(ctx, o, "configmap", namespace, name, func() (*v1.ConfigMap, error) {
		return o.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// Secret returns a Secret, not to be changed.
func (o *Objects) Secret(ctx context.Context, namespace, name string) (*v1.Secret, error) {
	return get(ctx, o, "secret", namespace, name, func() (*v1.Secret, error) {
		return o.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// HostPathOf returns the path on the machine behind a claim, "" if its volume
// is of a kind that is not on the machine, or if the claim is not bound yet.
func (o *Objects) HostPathOf(ctx context.Context, namespace, claim string) (string, error) {
	pvc, err := o.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, claim, metav1.GetOptions{})
	if err != nil || pvc.Status.Phase != v1.ClaimBound {
		return "", err
	}
	pv, err := o.client.CoreV1().PersistentVolumes().Get(ctx, pvc.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	switch {
	case pv.Spec.HostPath != nil:
		return pv.Spec.HostPath.Path, nil
	case pv.Spec.Local != nil:
		return pv.Spec.Local.Path, nil
	}
	return "", nil
}

// token is a ServiceAccount token and when to have the next.
type token struct {
	text    string
	refresh time.Time
}

// Token returns a token of the Pod's ServiceAccount, bound to the Pod, that is
// good for at least a fifth of its life.
func (o *Objects) token(ctx context.Context, pod *v1.Pod, audience string, seconds int64) (token, error) {
	tr := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		tr.Spec.Audiences = []string{audience}
	}
	sa := pod.Spec.ServiceAccountName
	if sa == "" {
		sa = "default"
	}
	tr, err := o.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, sa, tr, metav1.CreateOptions{})
	if err != nil {
		return token{}, err
	}
	life := time.Until(tr.Status.ExpirationTimestamp.Time)
	// Upstream's kubelet renews after 80 % of the life, or a day.
	return token{text: tr.Status.Token, refresh: time.Now().Add(min(life*8/10, 24*time.Hour))}, nil
}
