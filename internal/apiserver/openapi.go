package apiserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	restful "github.com/emicklei/go-restful/v3"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/kube-openapi/pkg/aggregator"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// openAPIKeep is how long built documents are kept after the last request for any.
const openAPIKeep = 2 * time.Minute

// lazyOpenAPI serves /openapi: the description of the built-in resources, which it
// builds when somebody asks and forgets when nobody has for a while, merged
// with that of custom resources and API services, which the handler behind it
// keeps. Upstream builds everything at start, which takes the better part of a
// second and tens of megabytes that an instance nobody explains anything to never needs.
type lazyOpenAPI struct {
	v2 *common.Config
	v3 *common.OpenAPIV3Config
	// services are the web services to describe, by group version such as "apis/apps/v1".
	services map[string]*restful.WebService
	// root is the answer to /openapi/v3 as far as it is ours.
	root map[string]handler3.OpenAPIV3DiscoveryGroupVersion

	mu     sync.Mutex
	built  map[string]http.Handler // of v3, by group version
	merged http.Handler            // of v2
	// mergedOf is the entity tag of the other handler's document in merged.
	mergedOf string
	forget   *time.Timer
}

func newLazyOpenAPI(container *restful.Container, v2 *common.Config, v3 *common.OpenAPIV3Config) *lazyOpenAPI {
	o := &lazyOpenAPI{
		v2: v2, v3: v3,
		services: map[string]*restful.WebService{},
		root:     map[string]handler3.OpenAPIV3DiscoveryGroupVersion{},
		built:    map[string]http.Handler{},
	}
	program := programID()
	for _, ws := range container.RegisteredWebServices() {
		name := strings.TrimPrefix(ws.RootPath(), "/")
		o.services[name] = ws
		// Clients keep documents for as long as the hash stays the same. What
		// a built-in resource looks like depends on the program alone.
		hash := fmt.Sprintf("%X", sha256.Sum256([]byte(program+" "+name)))
		u := url.URL{Path: "/openapi/v3/" + name, RawQuery: url.Values{"hash": {hash}}.Encode()}
		o.root[name] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: u.String()}
	}
	return o
}

// programID changes when the program does.
func programID() string {
	var id strings.Builder
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			fmt.Fprintln(&id, s.Key, s.Value)
		}
		for _, d := range info.Deps {
			if strings.HasPrefix(d.Path, "k8s.io/") {
				fmt.Fprintln(&id, d.Path, d.Version)
			}
		}
	}
	if exe, err := os.Executable(); err == nil {
		if st, err := os.Stat(exe); err == nil {
			fmt.Fprintln(&id, st.Size(), st.ModTime().UnixNano())
		}
	}
	return id.String()
}

// around returns a handler that answers for /openapi and leaves the rest, and
// the other half of /openapi, to next.
func (o *lazyOpenAPI) around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if !strings.HasPrefix(path, "/openapi/") || (r.Method != http.MethodGet && r.Method != http.MethodHead) {
			next.ServeHTTP(w, r)
			return
		}
		switch gv, isV3 := strings.CutPrefix(path, "/openapi/v3/"); {
		case path == "/openapi/v2":
			o.serveV2(w, r, next)
		case path == "/openapi/v3":
			o.serveRoot(w, r, next)
		case isV3 && o.services[gv] != nil:
			o.serveV3(w, r, gv)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// serveRoot answers with the list of all documents.
func (o *lazyOpenAPI) serveRoot(w http.ResponseWriter, r *http.Request, next http.Handler) {
	var all handler3.OpenAPIV3Discovery
	if rest := ask(next, r, "/openapi/v3"); rest.Code == http.StatusOK {
		_ = json.Unmarshal(rest.Body.Bytes(), &all)
	}
	if all.Paths == nil {
		all.Paths = map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}
	}
	for gv, where := range o.root {
		all.Paths[gv] = where
	}
	body, err := json.Marshal(all)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Etag", fmt.Sprintf(`"%X"`, sha256.Sum256(body)))
	http.ServeContent(w, r, path3, time.Time{}, bytes.NewReader(body))
}

const path3 = "/openapi/v3"

// serveV3 answers with the document of one group version of ours.
func (o *lazyOpenAPI) serveV3(w http.ResponseWriter, r *http.Request, gv string) {
	o.mu.Lock()
	h := o.built[gv]
	if h == nil {
		only := restful.NewContainer()
		only.Add(o.services[gv])
		m := mux.NewPathRecorderMux("openapi")
		routes.OpenAPI{V3Config: o.v3}.InstallV3(only, m)
		h = m
		o.built[gv] = h
	}
	o.usedLocked()
	o.mu.Unlock()

	if hash := r.URL.Query().Get("hash"); hash != "" && strings.HasSuffix(o.root[gv].ServerRelativeURL, "hash="+hash) {
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	// The handler behind has another hash, and would redirect to it.
	r = r.Clone(r.Context())
	r.URL.RawQuery = ""
	h.ServeHTTP(w, r)
}

// serveV2 answers with the one document of everything.
func (o *lazyOpenAPI) serveV2(w http.ResponseWriter, r *http.Request, next http.Handler) {
	rest := ask(next, r, "/openapi/v2")
	etag := rest.Header().Get("Etag")
	o.mu.Lock()
	if o.merged == nil || o.mergedOf != etag {
		h, err := o.buildV2(rest)
		if err != nil {
			o.mu.Unlock()
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		o.merged, o.mergedOf = h, etag
	}
	h := o.merged
	o.usedLocked()
	o.mu.Unlock()
	h.ServeHTTP(w, r)
}

func (o *lazyOpenAPI) buildV2(rest *httptest.ResponseRecorder) (http.Handler, error) {
	var services []*restful.WebService
	for _, ws := range o.services {
		services = append(services, ws)
	}
	slices.SortFunc(services, func(a, b *restful.WebService) int { return strings.Compare(a.RootPath(), b.RootPath()) })
	all, err := builder.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(services), o.v2)
	if err != nil {
		return nil, fmt.Errorf("build OpenAPI v2: %w", err)
	}
	if rest.Code == http.StatusOK {
		var others spec.Swagger
		if err := json.Unmarshal(rest.Body.Bytes(), &others); err != nil {
			return nil, fmt.Errorf("OpenAPI v2 of custom resources: %w", err)
		}
		if err := aggregator.MergeSpecsIgnorePathConflictRenamingDefinitionsAndParameters(all, &others); err != nil {
			return nil, fmt.Errorf("merge OpenAPI v2: %w", err)
		}
	}
	all.Definitions = handler.PruneDefaults(all.Definitions)
	m := mux.NewPathRecorderMux("openapi")
	handler.NewOpenAPIService(all).RegisterOpenAPIVersionedService("/openapi/v2", m)
	return m, nil
}

// usedLocked puts off forgetting.
func (o *lazyOpenAPI) usedLocked() {
	if o.forget == nil {
		o.forget = time.AfterFunc(openAPIKeep, o.drop)
	}
	o.forget.Reset(openAPIKeep)
}

func (o *lazyOpenAPI) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.built, o.merged = map[string]http.Handler{}, nil
}

// ask gets the JSON document at path from h, as the user of r.
func ask(h http.Handler, r *http.Request, path string) *httptest.ResponseRecorder {
	r = r.Clone(r.Context())
	r.Method = http.MethodGet
	r.URL.Path, r.URL.RawQuery = path, ""
	r.Header = http.Header{"Accept": {"application/json"}}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}
