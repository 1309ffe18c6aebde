package volumes

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"
)

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "ns", Name: name} }

func newClient() *fake.Clientset {
	c := fake.NewClientset(
		&v1.ConfigMap{ObjectMeta: meta("cm"), Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"bin": {0, 1}}},
		&v1.Secret{ObjectMeta: meta("sec"), Data: map[string][]byte{"pw": []byte("hidden")}},
		&v1.PersistentVolumeClaim{ObjectMeta: meta("bound"), Spec: v1.PersistentVolumeClaimSpec{VolumeName: "pv"}, Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound}},
		&v1.PersistentVolumeClaim{ObjectMeta: meta("waits"), Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimPending}},
		&v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: v1.PersistentVolumeSpec{PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: "/data"}}}})
	n := 0
	c.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" {
			return false, nil, nil
		}
		n++
		tr := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
		tr.Status = authenticationv1.TokenRequestStatus{Token: fmt.Sprintf("token %d for %v", n, tr.Spec.Audiences),
			ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Duration(*tr.Spec.ExpirationSeconds) * time.Second))}
		return true, tr, nil
	})
	return c
}

func pod(vols ...v1.Volume) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "uid", Labels: map[string]string{"app": "web"}},
		Spec: v1.PodSpec{Volumes: vols, Containers: []v1.Container{{Name: "c", Image: "host"}}}}
}

func volume(s v1.VolumeSource) v1.Volume { return v1.Volume{Name: "v", VolumeSource: s} }

func local(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }

func TestSetup(t *testing.T) {
	yes := ptr.To(true)
	field := func(path, field string) v1.DownwardAPIVolumeFile {
		return v1.DownwardAPIVolumeFile{Path: path, FieldRef: &v1.ObjectFieldSelector{FieldPath: field}}
	}
	for _, test := range []struct {
		name string
		s    v1.VolumeSource
		want map[string]string // path: "mode content"
		err  string
	}{
		{"configMap", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: local("cm")}}, map[string]string{"a": "644 1", "b": "644 2", "bin": "644 \x00\x01"}, ""},
		{"some of its keys", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: local("cm"), DefaultMode: ptr.To(int32(0o440)),
			Items: []v1.KeyToPath{{Key: "a", Path: "x/y"}, {Key: "b", Path: "z", Mode: ptr.To(int32(0o700))}}}}, map[string]string{"x/y": "440 1", "z": "700 2"}, ""},
		{"a key that it lacks", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: local("cm"), Items: []v1.KeyToPath{{Key: "none", Path: "x"}}}}, nil, `configmap "cm" references non-existent key: none`},
		{"a key that it may lack", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: local("cm"), Optional: yes, Items: []v1.KeyToPath{{Key: "none", Path: "x"}}}}, map[string]string{}, ""},
		{"no configMap", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: local("none")}}, nil, `MountVolume.SetUp failed for volume "v" : configmaps "none" not found`},
		{"no configMap, optional", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: local("none"), Optional: yes}}, map[string]string{}, ""},
		{"secret", v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "sec", DefaultMode: ptr.To(int32(0o400))}}, map[string]string{"pw": "400 hidden"}, ""},
		{"downwardAPI", v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: []v1.DownwardAPIVolumeFile{field("labels", "metadata.labels"), field("name", "metadata.name"),
			{Path: "cpu", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.cpu"}}}}}, map[string]string{"labels": `644 app="web"`, "name": "644 p", "cpu": "644 4"}, ""},
		{"projected", v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{DefaultMode: ptr.To(int32(0o600)), Sources: []v1.VolumeProjection{
			{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: local("cm"), Items: []v1.KeyToPath{{Key: "a", Path: "d/a"}}}},
			{Secret: &v1.SecretProjection{LocalObjectReference: local("sec")}},
			{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{field("d/ns", "metadata.namespace")}}},
			{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token", Audience: "vault"}}}}},
			map[string]string{"d/a": "600 1", "pw": "600 hidden", "d/ns": "600 ns", "token": "600 token 1 for [vault]"}, ""},
		{"of an unknown kind", v1.VolumeSource{NFS: &v1.NFSVolumeSource{}}, nil, "is of a kind that Fairway's nodes do not know"},
		{"a claim that waits", v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "waits"}}, nil, `claim "waits": is not bound`},
	} {
		t.Run(test.name, func(t *testing.T) {
			vs := New(t.TempDir(), NewObjects(newClient(), time.Minute), v1.ResourceList{v1.ResourceCPU: resource.MustParse("4")})
			vols, err := vs.Setup(t.Context(), pod(volume(test.s)))
			if err != nil || test.err != "" {
				if err == nil || test.err == "" || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want %q", err, test.err)
				}
				return
			}
			v := vols["v"]
			if !v.ReadOnly {
				t.Error("can be written to")
			}
			for path, want := range test.want {
				fi, err := os.Stat(filepath.Join(v.Path, path))
				if err != nil {
					t.Error(err)
					continue
				}
				if got := fmt.Sprintf("%o %s", fi.Mode().Perm(), read(t, filepath.Join(v.Path, path))); got != want {
					t.Errorf("%s: %q, want %q", path, got, want)
				}
			}
			if got := names(t, v.Path); len(test.want) == 0 && len(got) > 2 { // ..data and its target
				t.Errorf("holds %v", got)
			}
			if err := vs.Teardown(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(v.Path); err == nil {
				t.Error("is left")
			}
		})
	}
}

func TestClaim(t *testing.T) {
	vs := New(t.TempDir(), NewObjects(newClient(), time.Minute), nil)
	vols, err := vs.Setup(t.Context(), pod(volume(v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "bound", ReadOnly: true}})))
	if err != nil || vols["v"] != (Volume{Path: "/data", ReadOnly: true}) {
		t.Errorf("%+v, %v", vols, err)
	}
}

// What changes in the API changes in the volume, once the object is asked for
// again; a token is renewed in time.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := newClient()
		objects := NewObjects(client, time.Minute)
		vs := New(t.TempDir(), objects, nil)
		p := pod(volume(v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
			{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: local("cm")}}, {ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To(int64(1000))}}}}}))
		if !Changing(p) || Changing(pod(volume(v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}))) {
			t.Error("what may change is not known")
		}
		see := func(path string) string {
			t.Helper()
			vols, err := vs.Setup(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			return read(t, filepath.Join(vols["v"].Path, path))
		}
		if got := see("a"); got != "1" {
			t.Errorf("at first %q", got)
		}
		cm, err := objects.ConfigMap(t.Context(), "ns", "cm")
		if err != nil {
			t.Fatal(err)
		}
		cm = cm.DeepCopy()
		cm.Data["a"] = "new"
		if _, err := client.CoreV1().ConfigMaps("ns").Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := see("a"); got != "1" {
			t.Errorf("asked for again at once: %q", got)
		}
		time.Sleep(61 * time.Second)
		if got := see("a"); got != "new" {
			t.Errorf("after a minute %q", got)
		}
		if got := see("token"); got != "token 1 for []" {
			t.Errorf("renewed without need: %q", got)
		}
		time.Sleep(13 * time.Minute) // 80 % of 1000 s have gone
		if got := see("token"); got != "token 2 for []" {
			t.Errorf("not renewed: %q", got)
		}
	})
}

// A hundred Pods that share an object cost one request.
func TestObjectsAreShared(t *testing.T) {
	client := newClient()
	objects := NewObjects(client, time.Hour)
	done := make(chan error)
	for range 100 {
		go func() {
			_, err := objects.Secret(context.Background(), "ns", "sec")
			done <- err
		}()
	}
	for range 100 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := len(client.Actions()); n != 1 {
		t.Errorf("%d requests", n)
	}
	// What is not there is asked for each time: it may come.
	for range 2 {
		if _, err := objects.ConfigMap(t.Context(), "ns", "sec"); err == nil {
			t.Error("a Secret is not a ConfigMap")
		}
	}
	if n := len(client.Actions()); n != 3 {
		t.Errorf("%d requests", n)
	}
}

func TestTokenModes(t *testing.T) {
	for _, test := range []struct {
		name string
		set  func(*v1.Pod)
		want os.FileMode
	}{
		{"root's alone", func(*v1.Pod) {}, 0o600},
		{"another user", func(p *v1.Pod) { p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: ptr.To(int64(1))} }, 0o644},
		{"another user in one container", func(p *v1.Pod) {
			p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{RunAsUser: ptr.To(int64(1))}
		}, 0o644},
		{"an image, which may say a user", func(p *v1.Pod) { p.Spec.Containers[0].Image = "nginx" }, 0o644},
		{"a group", func(p *v1.Pod) {
			p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr.To(int64(os.Getgid()))}
		}, 0o644},
	} {
		vs := New(t.TempDir(), NewObjects(newClient(), time.Minute), nil)
		p := pod(volume(v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}}}}}))
		test.set(p)
		vols, err := vs.Setup(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(vols["v"].Path + "/token")
		if err != nil || fi.Mode() != test.want {
			t.Errorf("%s: %v, %v", test.name, fi.Mode(), err)
		}
	}
}

func TestEmptyDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	p := pod()
	if err := emptyDir(dir, &v1.EmptyDirVolumeSource{}, p); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/kept", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr.To(int64(os.Getgid()))}
	if err := emptyDir(dir, &v1.EmptyDirVolumeSource{}, p); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("holds %v after a second set-up", got)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o777 || fi.Mode()&os.ModeSetgid == 0 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, test := range []struct {
		path string
		kind v1.HostPathType
		ok   bool
	}{
		{dir, v1.HostPathDirectory, true}, {dir, v1.HostPathFile, false}, {dir, v1.HostPathUnset, true}, {dir, v1.HostPathFileOrCreate, false},
		{dir + "/file", v1.HostPathFile, true}, {dir + "/file", v1.HostPathDirectory, false}, {dir + "/file", v1.HostPathDirectoryOrCreate, false},
		{dir + "/socket", v1.HostPathSocket, true}, {dir + "/file", v1.HostPathSocket, false},
		{"/dev/null", v1.HostPathCharDev, true}, {"/dev/null", v1.HostPathBlockDev, false}, {dir + "/file", v1.HostPathCharDev, false},
		{dir + "/none", v1.HostPathDirectory, false}, {dir + "/none", v1.HostPathFile, false},
		{dir + "/new/dir", v1.HostPathDirectoryOrCreate, true}, {dir + "/newfile", v1.HostPathFileOrCreate, true}, {dir + "/asked", v1.HostPathUnset, true},
	} {
		if err := hostPath(&v1.HostPathVolumeSource{Path: test.path, Type: &test.kind}); (err == nil) != test.ok {
			t.Errorf("%s as %q: %v", test.path, test.kind, err)
		}
	}
	for path, isDir := range map[string]bool{"new/dir": true, "newfile": false, "asked": true} {
		if fi, err := os.Stat(filepath.Join(dir, path)); err != nil || fi.IsDir() != isDir {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Stat(dir + "/none"); err == nil {
		t.Error("a check has made what it looked for")
	}
}
