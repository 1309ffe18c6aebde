package lifecycle

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairway.dev/fairway/internal/node/runtime"
)

// Handle is what the node's HTTPS server needs of a container.
type Handle struct {
	Runtime runtime.Runtime
	ID      string
	Running bool
	Spec    *v1.Container
	// Log is the latest attempt's, Previous the one's before; "" for none.
	Log, Previous string
}

// Container finds a container of a running Pod by name; an empty name means the
// only one.
func (m *Manager) Container(namespace, pod, name string) (Handle, error) {
	w, err := m.worker(namespace, pod)
	if err != nil {
		return Handle{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if name == "" {
		if len(w.next.Spec.Containers) != 1 {
			return Handle{}, fmt.Errorf("a container name must be specified for pod %s", pod)
		}
		name = w.next.Spec.Containers[0].Name
	}
	for _, c := range w.ctrs {
		if c.spec.Name != name {
			continue
		}
		h := Handle{Runtime: c.rt, ID: c.id, Running: c.running, Spec: c.spec}
		if n := len(c.logs); n > 0 {
			h.Log = c.logs[n-1]
			if n > 1 {
				h.Previous = c.logs[n-2]
			}
		}
		return h, nil
	}
	return Handle{}, fmt.Errorf("container %s is not valid for pod %s", name, pod)
}

// Network answers with the name of the network namespace of a Pod, "" if it has
// none yet.
func (m *Manager) Network(namespace, pod string) (netns string, host bool, err error) {
	w, err := m.worker(namespace, pod)
	if err != nil {
		return "", false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next.Spec.HostNetwork {
		return "", true, nil
	}
	if w.sb == nil || w.sb.Net == nil {
		return "", false, fmt.Errorf("pod %s has no network yet", pod)
	}
	return w.sb.Net.NSName, false, nil
}

// Pods returns the node's Pods, not to be changed.
func (m *Manager) Pods() []*v1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*v1.Pod, 0, len(m.pods))
	for _, w := range m.pods {
		w.mu.Lock()
		out = append(out, w.next)
		w.mu.Unlock()
	}
	return out
}

func (m *Manager) worker(namespace, pod string) (*worker, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.byName[types.NamespacedName{Namespace: namespace, Name: pod}]
	if w == nil {
		return nil, fmt.Errorf("pod %q does not exist in namespace %q", pod, namespace)
	}
	return w, nil
}

// runtimeOf is the runtime of a container, nil if it is not there.
func (m *Manager) runtimeOf(id string) runtime.Runtime {
	for _, rt := range m.cfg.Runtimes() {
		if strings.HasPrefix(id, rt.Scheme()+"://") {
			return rt
		}
	}
	return nil
}

// life is the context of what outlives a round: it ends with the Manager's Run.
func (m *Manager) life() context.Context {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.runCtx
}

// ipsLocked are the Pod's addresses. The caller holds w.mu.
func (w *worker) ipsLocked(pod *v1.Pod) []netip.Addr {
	if pod.Spec.HostNetwork {
		return w.m.cfg.HostIPs
	}
	if w.sb != nil && w.sb.Net != nil {
		return w.sb.Net.Addrs
	}
	return nil
}

// pullSecrets are the credentials that the Pod names.
func (w *worker) pullSecrets(ctx context.Context) ([]runtime.Auth, error) {
	var out []runtime.Auth
	for _, ref := range w.pod.Spec.ImagePullSecrets {
		s, err := w.m.cfg.Objects.Secret(ctx, w.namespace, ref.Name)
		if err != nil {
			continue // upstream goes on without it, and so does the pull
		}
		var cfg struct {
			Auths map[string]struct{ Username, Password, Auth, IdentityToken, RegistryToken string }
		}
		if json.Unmarshal(s.Data[v1.DockerConfigJsonKey], &cfg) != nil {
			continue
		}
		for server, a := range cfg.Auths {
			if a.Username == "" && a.Auth != "" {
				if b, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
					a.Username, a.Password, _ = strings.Cut(string(b), ":")
				}
			}
			out = append(out, runtime.Auth{Username: a.Username, Password: a.Password, ServerAddress: server, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken})
		}
	}
	return out, nil
}

// tailOf returns the last lines of a log in CRI format, without their headers.
func tailOf(path string, lines, size int) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	if len(b) > 8*size {
		b = b[len(b)-8*size:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	var out [][]byte
	for _, line := range bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n")) {
		if f := bytes.SplitN(line, []byte(" "), 4); len(f) == 4 {
			out = append(out, f[3])
		}
	}
	if len(out) > lines {
		out = out[len(out)-lines:]
	}
	text := bytes.Join(out, []byte("\n"))
	if len(text) > size {
		text = text[len(text)-size:]
	}
	return text
}
