package service

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/printers"
	printersinternal "k8s.io/kubernetes/pkg/printers/internalversion"
	printerstorage "k8s.io/kubernetes/pkg/printers/storage"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	apiservice "k8s.io/kubernetes/pkg/api/service"
)

// REST serves services. It is the generic store with a ledger around each write and, inside each try of a write, the steps
// that the package comment lists.
type REST struct {
	*genericregistry.Store
	families families
	alloc    *allocator
	patience time.Duration // after which a write gives up
	location *locator
}

var (
	_ rest.StandardStorage        = (*REST)(nil)
	_ rest.CategoriesProvider     = (*REST)(nil)
	_ rest.ShortNamesProvider     = (*REST)(nil)
	_ rest.StorageVersionProvider = (*REST)(nil)
	_ rest.ResetFieldsStrategy    = (*REST)(nil)
	_ rest.Redirector             = (*REST)(nil)
	_ rest.Updater                = (*StatusREST)(nil)
	_ rest.Patcher                = (*StatusREST)(nil)
	_ rest.ResetFieldsStrategy    = (*StatusREST)(nil)
)

func newREST(opts generic.RESTOptionsGetter, fams families, alloc *allocator, patience time.Duration) (*REST, *StatusREST, error) {
	r := &REST{families: fams, alloc: alloc, patience: patience}
	r.Store = &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return &core.Service{} },
		NewListFunc:               func() runtime.Object { return &core.ServiceList{} },
		PredicateFunc:             match,
		DefaultQualifiedResource:  core.Resource("services"),
		SingularQualifiedResource: core.Resource("service"),
		ReturnDeletedObject:       true,
		CreateStrategy:            newStrategy,
		UpdateStrategy:            newStrategy,
		DeleteStrategy:            newStrategy,
		ResetFieldsStrategy:       newStrategy,
		TableConvertor:            printerstorage.TableConvertor{TableGenerator: printers.NewTableGenerator().With(printersinternal.AddHandlers)},
		Decorator:                 fams.present,
		AfterDelete:               r.afterDelete, // runs for services/status too: clearing the last finalizer there deletes
	}
	if err := r.CompleteWithOptions(&generic.StoreOptions{RESTOptions: opts, AttrFunc: attrs}); err != nil {
		return nil, nil, err
	}
	status := *r.Store
	status.UpdateStrategy = statusStrategy{newStrategy}
	status.ResetFieldsStrategy = statusStrategy{newStrategy}
	r.BeginCreate = r.beginCreate // these do not: a status names nothing to allocate
	r.BeginUpdate = r.beginUpdate
	return r, &StatusREST{store: &status}, nil
}

// Destroy closes all of the registry's connections to etcd.
func (r *REST) Destroy() {
	r.Store.Destroy()
	r.alloc.addrs.Close()
	r.alloc.ports.Close()
}

func (r *REST) ShortNames() []string { return []string{"svc"} }
func (r *REST) Categories() []string { return []string{"all"} }

// Create completes, validates, claims for and stores a new Service.
func (r *REST) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, opts *metav1.CreateOptions) (runtime.Object, error) {
	l, write, cancel := r.ledger(ctx, opts.DryRun)
	defer cancel()
	out, err := r.Store.Create(write, obj, validate, opts)
	l.settle(ctx, asService(out), err)
	return out, err
}

// Update changes a Service, or makes it if there is none and the client said how. All kinds of patch come this way.
func (r *REST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, forceAllowCreate bool, opts *metav1.UpdateOptions) (runtime.Object, bool, error) {
	l, write, cancel := r.ledger(ctx, opts.DryRun)
	defer cancel()
	out, created, err := r.Store.Update(write, name, info, create, update, forceAllowCreate, opts)
	l.settle(ctx, asService(out), err)
	return out, created, err
}

// ledger starts a ledger for one write, with the context to write under. The write gives up in time: what it claimed and
// then did not use may be released by repair only when it can no longer be stored.
func (r *REST) ledger(ctx context.Context, dryRun []string) (*ledger, context.Context, context.CancelFunc) {
	l := newLedger(r.alloc, dryrun.IsDryRun(dryRun))
	write, cancel := context.WithTimeout(withLedger(ctx, l), r.patience)
	return l, write, cancel
}

func (r *REST) beginCreate(ctx context.Context, obj runtime.Object, _ *metav1.CreateOptions) (genericregistry.FinishFunc, error) {
	l, err := ledgerFrom(ctx)
	if err != nil {
		return nil, err
	}
	svc := obj.(*core.Service)
	if svc.Namespace == "" {
		svc.Namespace = genericapirequest.NamespaceValue(ctx)
	}
	l.try(ctx, ownerOf(svc), nil)
	mirrorClusterIP(svc, nil)
	if errs := r.families.settle(svc, nil); len(errs) > 0 {
		return nil, invalid(svc, errs...)
	}
	if err := rest.BeforeCreate(newStrategy, ctx, asIfClaimed(svc)); err != nil {
		return nil, err
	}
	return l.finish, l.claim(ctx, svc)
}

func (r *REST) beginUpdate(ctx context.Context, obj, oldObj runtime.Object, _ *metav1.UpdateOptions) (genericregistry.FinishFunc, error) {
	l, err := ledgerFrom(ctx)
	if err != nil {
		return nil, err
	}
	svc, old := obj.(*core.Service), oldObj.(*core.Service)
	r.families.presentOne(old)
	l.try(ctx, ownerOf(old), old)
	carryOver(svc, old)
	mirrorClusterIP(svc, old)
	dropStale(svc, old)
	if errs := r.families.settle(svc, old); len(errs) > 0 {
		return nil, invalid(svc, errs...)
	}
	if err := rest.BeforeUpdate(newStrategy, ctx, asIfClaimed(svc), old.DeepCopy()); err != nil {
		return nil, err
	}
	return l.finish, l.claim(ctx, svc)
}

// finish is called by the generic store when it knows how a try went, for updates before it was even stored: too early.
func (l *ledger) finish(context.Context, bool) {}

// asIfClaimed returns a copy of svc to validate before anything is claimed for it: with a stand-in for what validation
// requires and the claims will bring.
func asIfClaimed(svc *core.Service) *core.Service {
	svc = svc.DeepCopy()
	if apiservice.NeedsHealthCheck(svc) && svc.Spec.HealthCheckNodePort == 0 {
		svc.Spec.HealthCheckNodePort = 1
	}
	return svc
}

// afterDelete releases what a deleted Service held. Two deletions that race may both come here.
func (r *REST) afterDelete(obj runtime.Object, opts *metav1.DeleteOptions) {
	if dryrun.IsDryRun(opts.DryRun) {
		return
	}
	svc := obj.(*core.Service).DeepCopy()
	r.families.presentOne(svc)
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	r.alloc.release(ctx, ownerOf(svc), holdingsOf(svc))
}

func asService(obj runtime.Object) *core.Service {
	svc, _ := obj.(*core.Service)
	return svc
}

// StatusREST serves services/status.
type StatusREST struct{ store *genericregistry.Store }

func (s *StatusREST) New() runtime.Object { return &core.Service{} }

// Destroy does nothing: the storage belongs to REST.
func (s *StatusREST) Destroy() {}

// Get reads the Service, for patches.
func (s *StatusREST) Get(ctx context.Context, name string, opts *metav1.GetOptions) (runtime.Object, error) {
	return s.store.Get(ctx, name, opts)
}

// Update writes the status of a Service that exists.
func (s *StatusREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, opts *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return s.store.Update(ctx, name, info, create, update, false, opts)
}

func (s *StatusREST) ConvertToTable(ctx context.Context, obj runtime.Object, opts runtime.Object) (*metav1.Table, error) {
	return s.store.ConvertToTable(ctx, obj, opts)
}

func (s *StatusREST) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return s.store.GetResetFields()
}
