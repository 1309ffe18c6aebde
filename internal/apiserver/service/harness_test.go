package service

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/server/options"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corev1conv "k8s.io/kubernetes/pkg/apis/core/v1"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	"k8s.io/kubernetes/pkg/kubeapiserver"
	ipaddressstore "k8s.io/kubernetes/pkg/registry/networking/ipaddress/storage"
	svccidrstore "k8s.io/kubernetes/pkg/registry/networking/servicecidr/storage"
)

// Flags make the random tests longer than a normal run has time for.
var (
	flagOps  = flag.Int("service.ops", 0, "operations of the kill test (0: about 2000)")
	flagSeed = flag.Uint64("service.seed", 0, "seed of the random tests (0: a new one, printed)")
)

// sharedEtcd is one etcd for all tests of the process; each test has a prefix of its own in it.
var sharedEtcd struct {
	sync.Once
	stop     func()
	endpoint string
	n        int
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(runRole(role))
	}
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(io.Discard, nil)))
	flag.Parse()
	code := m.Run()
	if sharedEtcd.stop != nil {
		sharedEtcd.stop()
	}
	os.Exit(code)
}

// startEtcd starts an etcd on a free loopback port. listen is "127.0.0.1:0", or where the last one on dir listened.
func startEtcd(dir, listen string, fsync bool) (endpoint string, stop func(), err error) {
	c := embed.NewConfig()
	c.Dir = dir
	c.LogLevel = "fatal"
	c.UnsafeNoFsync = !fsync
	c.TickMs, c.ElectionMs = 25, 250
	peer := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	client := []url.URL{{Scheme: "http", Host: listen}}
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = peer, client, client
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}} // only a name: it has no peers
	c.InitialCluster = "default=http://127.0.0.1:2380"
	e, err := embed.StartEtcd(c)
	if err != nil {
		return "", nil, err
	}
	<-e.Server.ReadyNotify()
	return e.Clients[0].Addr().String(), e.Close, nil
}

// newStorage returns an empty etcd prefix to keep a cluster in.
func newStorage(t testing.TB) storagebackend.Config {
	t.Helper()
	sharedEtcd.Do(func() {
		dir, err := os.MkdirTemp("", "fairway-etcd-")
		if err != nil {
			t.Fatal(err)
		}
		endpoint, stop, err := startEtcd(dir, "127.0.0.1:0", false)
		if err != nil {
			t.Fatal(err)
		}
		sharedEtcd.endpoint = endpoint
		sharedEtcd.stop = func() { stop(); os.RemoveAll(dir) }
	})
	sharedEtcd.n++
	return storageAt(sharedEtcd.endpoint, fmt.Sprintf("/test%d", sharedEtcd.n))
}

func storageAt(endpoint, prefix string) storagebackend.Config {
	c := storagebackend.NewDefaultConfig(prefix, nil)
	c.Transport.ServerList = []string{"http://" + endpoint}
	return *c
}

// restOptions returns options as a real API server makes them.
func restOptions(c storagebackend.Config, watchCache bool) (generic.RESTOptionsGetter, error) {
	o := options.NewEtcdOptions(&c)
	o.EnableWatchCache = watchCache
	o.StorageConfig.CountMetricPollPeriod = 0 // it counts on, a while after its client is closed
	completed := kubeapiserver.NewStorageFactoryConfig().Complete(o)
	completed.APIResourceConfig = serverstorage.NewResourceConfig()
	factory, err := completed.New()
	if err != nil {
		return nil, err
	}
	return &options.StorageFactoryRestOptionsFactory{Options: *o, StorageFactory: factory}, nil
}

var (
	v4CIDR = netip.MustParsePrefix("10.96.0.0/16")
	v6CIDR = netip.MustParsePrefix("fd00:10:96::/112")
)

// cluster is a Service registry on an etcd prefix, with what tests do to it.
type cluster struct {
	t          testing.TB
	reg        *Registry
	rest       *REST
	cidrs      *svccidrstore.REST
	cidrStatus *svccidrstore.StatusREST
	addresses  *ipaddressstore.REST
	ctx        context.Context // of namespace "default"
}

type clusterOptions struct {
	storage    storagebackend.Config
	cidrs      []netip.Prefix
	ports      string
	leakAge    time.Duration
	watchCache bool
	logger     *slog.Logger
	noDefault  bool // make no default ServiceCIDR
}

// newCluster starts a registry. Without a storage among the options it gets an empty one, dual-stack.
func newCluster(t testing.TB, edits ...func(*clusterOptions)) *cluster {
	t.Helper()
	o := clusterOptions{cidrs: []netip.Prefix{v4CIDR, v6CIDR}, ports: "30000-32767", logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, e := range edits {
		e(&o)
	}
	if o.storage.Prefix == "" {
		o.storage = newStorage(t)
	}
	c, err := openCluster(o)
	if err != nil {
		t.Fatal(err)
	}
	c.t = t
	t.Cleanup(c.close)
	return c
}

func openCluster(o clusterOptions) (*cluster, error) {
	opts, err := restOptions(o.storage, o.watchCache)
	if err != nil {
		return nil, err
	}
	rng, err := utilnet.ParsePortRange(o.ports)
	if err != nil {
		return nil, err
	}
	reg, err := New(Config{RESTOptions: opts, ServiceCIDRs: o.cidrs, NodePorts: *rng, LeakAge: o.leakAge, Logger: o.logger})
	if err != nil {
		return nil, err
	}
	cidrs, cidrStatus, err := svccidrstore.NewREST(opts)
	if err != nil {
		return nil, err
	}
	addresses, err := ipaddressstore.NewREST(opts)
	if err != nil {
		return nil, err
	}
	c := &cluster{reg: reg, rest: reg.rest, cidrs: cidrs, cidrStatus: cidrStatus, addresses: addresses, ctx: requestContext("services", "default")}
	if !o.noDefault {
		var prefixes []string
		for _, p := range o.cidrs {
			prefixes = append(prefixes, p.String())
		}
		_ = c.addCIDR("kubernetes", prefixes...)
	}
	return c, nil
}

// requestContext is the context of a request as the handlers before the registry leave it.
func requestContext(resource, namespace string) context.Context {
	group := ""
	if resource != "services" {
		group = networking.GroupName
	}
	ctx := genericapirequest.WithNamespace(genericapirequest.NewContext(), namespace)
	return genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{APIGroup: group, APIVersion: "v1", Resource: resource})
}

// rawPorts opens the storage of the claims on node ports.
func rawPorts(c storagebackend.Config) (storage.Interface, func(), error) {
	opts, err := restOptions(c, false)
	if err != nil {
		return nil, nil, err
	}
	ro, err := opts.GetRESTOptions(core.Resource("services"), &core.Service{})
	if err != nil {
		return nil, nil, err
	}
	s, destroy, err := generic.NewRawStorage(ro.StorageConfig, func() runtime.Object { return &core.RangeAllocation{} }, nil, "/ranges")
	return s, destroy, err
}

func withNamespace(ctx context.Context, namespace string) context.Context {
	return genericapirequest.WithNamespace(ctx, namespace)
}

func (c *cluster) close() {
	c.rest.Destroy()
	c.cidrs.Destroy()
	c.addresses.Destroy()
}

func (c *cluster) addCIDR(name string, prefixes ...string) error {
	_, err := c.cidrs.Create(requestContext("servicecidrs", ""), &networking.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networking.ServiceCIDRSpec{CIDRs: prefixes},
	}, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	return err
}

func (c *cluster) removeCIDR(name string) {
	c.t.Helper()
	if _, _, err := c.cidrs.Delete(requestContext("servicecidrs", ""), name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// defaulted turns what a client sends into what a handler passes on: static defaults applied, internal.
func defaulted(svc *corev1.Service) *core.Service {
	svc = svc.DeepCopy()
	legacyscheme.Scheme.Default(svc)
	out := &core.Service{}
	if err := corev1conv.Convert_v1_Service_To_core_Service(svc, out, nil); err != nil {
		panic(err)
	}
	return out
}

// external is the way back, for the next update of the same client.
func external(svc *core.Service) *corev1.Service {
	out := &corev1.Service{}
	if err := corev1conv.Convert_core_Service_To_v1_Service(svc, out, nil); err != nil {
		panic(err)
	}
	return out
}

func (c *cluster) create(svc *corev1.Service, dryRun ...string) (*core.Service, error) {
	obj, err := c.rest.Create(c.ctx, defaulted(svc), rest.ValidateAllObjectFunc, &metav1.CreateOptions{DryRun: dryRun})
	return asService(obj), err
}

func (c *cluster) mustCreate(svc *corev1.Service) *core.Service {
	c.t.Helper()
	out, err := c.create(svc)
	if err != nil {
		c.t.Fatalf("create %s: %v", svc.Name, err)
	}
	return out
}

// put replaces a Service by svc, as PUT does.
func (c *cluster) put(svc *corev1.Service, dryRun ...string) (*core.Service, error) {
	obj, _, err := c.rest.Update(c.ctx, svc.Name, rest.DefaultUpdatedObjectInfo(defaulted(svc)), rest.ValidateAllObjectFunc,
		rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{DryRun: dryRun})
	return asService(obj), err
}

// edit changes a stored Service, as a patch does: what edit leaves alone is sent as it was read.
func (c *cluster) edit(name string, edit func(*corev1.Service)) (*core.Service, error) {
	info := rest.DefaultUpdatedObjectInfo(nil, func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		svc := external(old.(*core.Service).DeepCopy())
		edit(svc)
		return defaulted(svc), nil
	})
	obj, _, err := c.rest.Update(c.ctx, name, info, rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	return asService(obj), err
}

func (c *cluster) get(name string) (*core.Service, error) {
	obj, err := c.rest.Get(c.ctx, name, &metav1.GetOptions{})
	return asService(obj), err
}

func (c *cluster) delete(name string) error {
	_, _, err := c.rest.Delete(c.ctx, name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{})
	return err
}

func (c *cluster) services() []core.Service {
	c.t.Helper()
	obj, err := c.rest.List(genericapirequest.WithNamespace(c.ctx, ""), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return obj.(*core.ServiceList).Items
}

// audit returns what is wrong between what Services hold and what is claimed: nothing, when nothing is under way.
func (c *cluster) audit() []string {
	c.t.Helper()
	var wrong []string
	held := map[string]types.UID{}
	hold := func(id string, svc *core.Service) {
		if other, twice := held[id]; twice {
			wrong = append(wrong, fmt.Sprintf("%s is held by %s (%s) and by %s", id, svc.Name, svc.UID, other))
		}
		held[id] = svc.UID
	}
	svcs := c.services()
	for i := range svcs {
		h := holdingsOf(&svcs[i])
		for _, a := range h.addrs {
			hold(a.String(), &svcs[i])
		}
		for _, p := range h.ports {
			hold(fmt.Sprint(p), &svcs[i])
		}
	}
	addrs, err := c.reg.rest.alloc.addrs.List(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	ports, err := c.reg.rest.alloc.ports.List(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, cl := range append(addrs, ports...) {
		uid, ok := held[cl.ID]
		switch {
		case cl.Foreign:
		case !ok:
			wrong = append(wrong, fmt.Sprintf("%s is claimed for %s, who does not hold it", cl.ID, cl.Owner))
		case uid != cl.Owner.UID:
			wrong = append(wrong, fmt.Sprintf("%s is claimed for %s %s but held by %s", cl.ID, cl.Owner, cl.Owner.UID, uid))
		}
		delete(held, cl.ID)
	}
	for id, uid := range held {
		wrong = append(wrong, fmt.Sprintf("%s is held by %s without a claim", id, uid))
	}
	return wrong
}

func (c *cluster) checkAudit() {
	c.t.Helper()
	for _, w := range c.audit() {
		c.t.Error(w)
	}
}

// svc returns a Service of namespace default as a client would send it, with one TCP port 80.
func svc(name string, edits ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Port: 80}},
		},
	}
	for _, e := range edits {
		e(s)
	}
	return s
}

func ofType(typ corev1.ServiceType) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = typ
		if typ == corev1.ServiceTypeExternalName {
			s.Spec.ExternalName = "example.com"
		}
	}
}
