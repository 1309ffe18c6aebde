// Package volumes lays out a Pod's volumes as directories and files of the
// machine.
//
// In go a Pod and what it refers to, out come paths to mount. It writes only
// below the directory it was given for the Pod, and where a hostPath volume
// asks for it.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
)

// Volumes are those of one Pod. Its methods must not be called at the same time.
type Volumes struct {
	dir     string
	objects *Objects
	// allocatable is the limit of containers that have none.
	allocatable v1.ResourceList
	tokens      map[string]token // by volume and path
	mu          sync.Mutex
}

// New keeps a Pod's volumes below dir. allocatable is what Pods may have of the
// node: the downward API's limit for containers that have none.
func New(dir string, objects *Objects, allocatable v1.ResourceList) *Volumes {
	return &Volumes{dir: dir, objects: objects, allocatable: allocatable, tokens: map[string]token{}}
}

// Volume is one of them, ready.
type Volume struct {
	Path     string // on the machine
	ReadOnly bool   // by its kind
}

// Setup makes every volume of the Pod, or brings what has changed in the API up
// to date. It may be called again at any time.
func (vs *Volumes) Setup(ctx context.Context, pod *v1.Pod) (map[string]Volume, error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	out := map[string]Volume{}
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		vol, err := vs.setup(ctx, pod, v)
		if err != nil {
			errs = append(errs, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err))
			continue
		}
		out[v.Name] = vol
	}
	return out, errors.Join(errs...)
}

// Changing tells whether Setup may find something new later.
func Changing(pod *v1.Pod) bool {
	for _, v := range pod.Spec.Volumes {
		if v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil {
			return true
		}
	}
	return false
}

func (vs *Volumes) setup(ctx context.Context, pod *v1.Pod, v *v1.Volume) (Volume, error) {
	dir := filepath.Join(vs.dir, v.Name)
	switch {
	case v.EmptyDir != nil:
		return Volume{Path: dir}, emptyDir(dir, v.EmptyDir, pod)
	case v.HostPath != nil:
		return Volume{Path: v.HostPath.Path}, hostPath(v.HostPath)
	case v.PersistentVolumeClaim != nil:
		path, err := vs.objects.HostPathOf(ctx, pod.Namespace, v.PersistentVolumeClaim.ClaimName)
		if err == nil && path == "" {
			err = fmt.Errorf("claim %q: is not bound to a volume of kind hostPath or local, which are those Fairway's nodes can mount", v.PersistentVolumeClaim.ClaimName)
		}
		return Volume{Path: path, ReadOnly: v.PersistentVolumeClaim.ReadOnly}, err
	}
	files := map[string]file{}
	var err error
	mode := int32(0o644)
	switch {
	case v.ConfigMap != nil:
		mode = or(v.ConfigMap.DefaultMode, mode)
		err = vs.configMap(ctx, pod, v.ConfigMap.Name, v.ConfigMap.Items, isTrue(v.ConfigMap.Optional), mode, files)
	case v.Secret != nil:
		mode = or(v.Secret.DefaultMode, mode)
		err = vs.secret(ctx, pod, v.Secret.SecretName, v.Secret.Items, isTrue(v.Secret.Optional), mode, files)
	case v.DownwardAPI != nil:
		err = vs.downward(pod, v.DownwardAPI.Items, or(v.DownwardAPI.DefaultMode, mode), files)
	case v.Projected != nil:
		mode = or(v.Projected.DefaultMode, mode)
		for _, s := range v.Projected.Sources {
			switch {
			case s.ConfigMap != nil:
				err = errors.Join(err, vs.configMap(ctx, pod, s.ConfigMap.Name, s.ConfigMap.Items, isTrue(s.ConfigMap.Optional), mode, files))
			case s.Secret != nil:
				err = errors.Join(err, vs.secret(ctx, pod, s.Secret.Name, s.Secret.Items, isTrue(s.Secret.Optional), mode, files))
			case s.DownwardAPI != nil:
				err = errors.Join(err, vs.downward(pod, s.DownwardAPI.Items, mode, files))
			case s.ServiceAccountToken != nil:
				err = errors.Join(err, vs.serviceAccountToken(ctx, pod, v.Name, s.ServiceAccountToken, files))
			default:
				err = errors.Join(err, errors.New("projected source: of a kind that Fairway's nodes do not know (known: configMap, secret, downwardAPI, serviceAccountToken)"))
			}
		}
	default:
		return Volume{}, errors.New("is of a kind that Fairway's nodes do not know (known: emptyDir, configMap, secret, projected, downwardAPI, hostPath, persistentVolumeClaim)")
	}
	if err != nil {
		return Volume{}, err
	}
	return Volume{Path: dir, ReadOnly: true}, writeAtomic(dir, files, fsGroup(pod))
}

func (vs *Volumes) configMap(ctx context.Context, pod *v1.Pod, name string, items []v1.KeyToPath, optional bool, mode int32, files map[string]file) error {
	cm, err := vs.objects.ConfigMap(ctx, pod.Namespace, name)
	if apierrors.IsNotFound(err) && optional {
		return nil
	}
	if err != nil {
		return err
	}
	data := map[string][]byte{}
	for k, s := range cm.Data {
		data[k] = []byte(s)
	}
	for k, b := range cm.BinaryData {
		data[k] = b
	}
	return pick("configmap", name, data, items, optional, mode, files)
}

func (vs *Volumes) secret(ctx context.Context, pod *v1.Pod, name string, items []v1.KeyToPath, optional bool, mode int32, files map[string]file) error {
	s, err := vs.objects.Secret(ctx, pod.Namespace, name)
	if apierrors.IsNotFound(err) && optional {
		return nil
	}
	if err != nil {
		return err
	}
	return pick("secret", name, s.Data, items, optional, mode, files)
}

// pick chooses the keys of an object that are to be files.
func pick(kind, name string, data map[string][]byte, items []v1.KeyToPath, optional bool, mode int32, files map[string]file) error {
	if len(items) == 0 {
		for k, b := range data {
			files[k] = file{b, mode}
		}
		return nil
	}
	for _, it := range items {
		b, ok := data[it.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf("%s %q references non-existent key: %s", kind, name, it.Key)
		}
		files[filepath.Clean(it.Path)] = file{b, or(it.Mode, mode)}
	}
	return nil
}

func (vs *Volumes) downward(pod *v1.Pod, items []v1.DownwardAPIVolumeFile, mode int32, files map[string]file) error {
	for _, it := range items {
		var text string
		var err error
		switch {
		case it.FieldRef != nil:
			text, err = fieldpath.ExtractFieldPathAsString(pod, it.FieldRef.FieldPath)
		case it.ResourceFieldRef != nil:
			text, err = resource.ExtractResourceValueByContainerNameAndNodeAllocatable(it.ResourceFieldRef, pod, it.ResourceFieldRef.ContainerName, vs.allocatable)
		}
		if err != nil {
			return err
		}
		files[filepath.Clean(it.Path)] = file{[]byte(text), or(it.Mode, mode)}
	}
	return nil
}

func (vs *Volumes) serviceAccountToken(ctx context.Context, pod *v1.Pod, volume string, p *v1.ServiceAccountTokenProjection, files map[string]file) error {
	key := volume + "/" + p.Path
	t, ok := vs.tokens[key]
	if !ok || time.Now().After(t.refresh) {
		seconds := int64(3600)
		if p.ExpirationSeconds != nil {
			seconds = *p.ExpirationSeconds
		}
		fresh, err := vs.objects.token(ctx, pod, p.Audience, seconds)
		if err != nil {
			return fmt.Errorf("failed to fetch token: %w", err)
		}
		t = fresh
		vs.tokens[key] = t
	}
	// As upstream: a token is for its owner, unless a group shares the volume
	// or a container runs as somebody else.
	mode := int32(0o600)
	if fsGroup(pod) != nil || !allRoot(pod) {
		mode = 0o644
	}
	files[filepath.Clean(p.Path)] = file{[]byte(t.text), mode}
	return nil
}

func allRoot(pod *v1.Pod) bool {
	root := func(u *int64) bool { return u == nil || *u == 0 }
	if sc := pod.Spec.SecurityContext; sc != nil && !root(sc.RunAsUser) {
		return false
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			if c.SecurityContext != nil && !root(c.SecurityContext.RunAsUser) {
				return false
			}
			if c.Image != "host" {
				return false // the image may say a user
			}
		}
	}
	return true
}

func emptyDir(dir string, e *v1.EmptyDirVolumeSource, pod *v1.Pod) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if e.Medium == v1.StorageMediumMemory && !isMount(dir) {
		opts := "mode=0777"
		if e.SizeLimit != nil && !e.SizeLimit.IsZero() {
			opts += fmt.Sprintf(",size=%d", e.SizeLimit.Value())
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
			return fmt.Errorf("mount tmpfs: %w", err)
		}
	}
	mode := os.FileMode(0o777)
	if g := fsGroup(pod); g != nil {
		if err := os.Chown(dir, -1, int(*g)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return os.Chmod(dir, mode) // whatever the umask
}

func hostPath(h *v1.HostPathVolumeSource) error {
	kind := v1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	fi, err := os.Stat(h.Path)
	if errors.Is(err, os.ErrNotExist) {
		switch kind {
		case v1.HostPathDirectoryOrCreate:
			return os.MkdirAll(h.Path, 0o755)
		case v1.HostPathFileOrCreate:
			f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_WRONLY, 0o644)
			if err == nil {
				f.Close()
			}
			return err
		case v1.HostPathUnset:
			// Container runtimes make a directory.
			return os.MkdirAll(h.Path, 0o755)
		}
	}
	if err != nil {
		return fmt.Errorf("hostPath type check failed: %w", err)
	}
	m := fi.Mode()
	if map[v1.HostPathType]bool{
		v1.HostPathDirectory: !m.IsDir(), v1.HostPathDirectoryOrCreate: !m.IsDir(),
		v1.HostPathFile: !m.IsRegular(), v1.HostPathFileOrCreate: !m.IsRegular(),
		v1.HostPathSocket:  m&os.ModeSocket == 0,
		v1.HostPathCharDev: m&os.ModeCharDevice == 0, v1.HostPathBlockDev: m&os.ModeDevice == 0 || m&os.ModeCharDevice != 0,
	}[kind] {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, kind)
	}
	return nil
}

// Teardown removes what Setup has made, but for hostPaths.
func (vs *Volumes) Teardown() error {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return Remove(vs.dir)
}

// Remove removes a directory of volumes, with what is mounted in it.
func Remove(dir string) error {
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		if p := filepath.Join(dir, e.Name()); isMount(p) {
			if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", p, err)
			}
		}
	}
	return os.RemoveAll(dir)
}

// isMount tells whether a directory is on another file system than its parent.
func isMount(dir string) bool {
	var a, b unix.Stat_t
	return unix.Stat(dir, &a) == nil && unix.Stat(filepath.Dir(dir), &b) == nil && a.Dev != b.Dev
}

func fsGroup(pod *v1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func isTrue(b *bool) bool { return b != nil && *b }

func or(p *int32, fallback int32) int32 {
	if p != nil {
		return *p
	}
	return fallback
}

// inside tells whether a relative path stays below its directory.
func inside(path string) bool {
	return filepath.IsLocal(path) && !strings.HasPrefix(path, "..")
}
