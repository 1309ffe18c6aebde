package cri

import (
	"context"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairway.dev/fairway/internal/node/runtime"
)

// EnsureImage implements runtime.Runtime.
func (r *Runtime) EnsureImage(ctx context.Context, _ *runtime.Sandbox, image, pull string, auths []runtime.Auth) (string, error) {
	spec := &api.ImageSpec{Image: image, UserSpecifiedImage: image}
	st, err := r.images.ImageStatus(ctx, spec, false)
	if err != nil {
		return "", &runtime.ImageError{Reason: "ImageInspectError", Err: fmt.Errorf("%s: %w", r.name, err)}
	}
	present := st.GetImage().GetId()
	switch {
	case present != "" && pull != "Always":
		return present, nil
	case pull == "Never":
		return "", &runtime.ImageError{Reason: "ErrImageNeverPull", Err: fmt.Errorf("container image %q is not present with pull policy of Never", image)}
	}
	var last error
	for _, a := range append(matching(auths, image), nil) {
		if _, last = r.images.PullImage(ctx, spec, a, nil); last == nil {
			st, err := r.images.ImageStatus(ctx, spec, false)
			if err != nil || st.GetImage() == nil {
				return image, nil
			}
			return st.Image.Id, nil
		}
	}
	return "", &runtime.ImageError{Reason: "ErrImagePull", Err: fmt.Errorf("%s: %w", r.name, last)}
}

// matching are the credentials for an image, those of the longest address first.
func matching(auths []runtime.Auth, image string) []*api.AuthConfig {
	host, repository, ok := strings.Cut(image, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host, repository = hub, image
	}
	type match struct {
		auth   *api.AuthConfig
		length int
	}
	var found []match
	for _, a := range auths {
		server := strings.TrimPrefix(strings.TrimPrefix(a.ServerAddress, "https://"), "http://")
		server, dir, _ := strings.Cut(server, "/")
		dir = strings.Trim(dir, "/")
		if dir == "v1" || dir == "v2" { // of the registry's own protocol
			dir = ""
		}
		if !sameHost(server, host) || dir != "" && repository != dir && !strings.HasPrefix(repository, dir+"/") {
			continue
		}
		found = append(found, match{&api.AuthConfig{Username: a.Username, Password: a.Password, Auth: a.Auth, ServerAddress: a.ServerAddress,
			IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}, len(server) + len(dir)})
	}
	slices.SortStableFunc(found, func(a, b match) int { return b.length - a.length })
	var out []*api.AuthConfig
	for _, m := range found {
		out = append(out, m.auth)
	}
	return out
}

// hub is the registry of images that name none, by its one true name.
const hub = "docker.io"

// sameHost tells whether credentials for a server, which may have * for parts of
// its name, are for a registry. A port must be the same.
func sameHost(server, registry string) bool {
	for _, p := range []*string{&server, &registry} {
		if *p == "index.docker.io" || *p == "registry-1.docker.io" {
			*p = hub
		}
	}
	split := func(s string) (parts []string, port string) {
		if h, p, err := net.SplitHostPort(s); err == nil {
			s, port = h, p
		}
		return strings.Split(s, "."), port
	}
	want, wantPort := split(server)
	got, gotPort := split(registry)
	if len(want) != len(got) || wantPort != gotPort {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], got[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
