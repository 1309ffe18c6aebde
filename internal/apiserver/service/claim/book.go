package claim

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/storage"
)

// AnnotationServiceUID on a claim holds the UID of the Service it is for. With it, a claim of a Service that was
// deleted and made again under the same name is told apart from the claim of its predecessor.
const AnnotationServiceUID = "fairway.dev/service-uid"

// AnnotationServer on a claim names the server process that made it, by a number of that process's own choice.
const AnnotationServer = "fairway.dev/claimed-by"

// process is the number of this process.
var process = string(uuid.NewUUID())

// ErrTaken: somebody holds what was asked for.
var ErrTaken = errors.New("already allocated")

// ErrOutside: what was asked for is not among what is handed out.
var ErrOutside = errors.New("not in the valid range")

// ErrFull: there is nothing left to hand out.
var ErrFull = errors.New("range is full")

// Owner is the Service that a claim is for.
type Owner struct {
	Namespace, Name string
	UID             types.UID // empty: unknown, any
}

func (o Owner) String() string { return o.Namespace + "/" + o.Name }

// Same reports whether o and p are the same Service. An unknown UID matches any.
func (o Owner) Same(p Owner) bool {
	return o.Namespace == p.Namespace && o.Name == p.Name && (o.UID == "" || p.UID == "" || o.UID == p.UID)
}

// Claim is one claim as it stands in etcd.
type Claim struct {
	ID      string // the thing claimed
	Owner   Owner
	Created time.Time // by the clock of the server that made it
	Mine    bool      // made by this very process
	Foreign bool      // made by something else than a Service registry; never to be released by one
	Unsound bool      // ours by its labels, but it does not say what it should; to be made again

	uid types.UID
	rv  string
}

// Same reports whether c and d are one and the same claim, not a claim and its successor.
func (c Claim) Same(d Claim) bool { return c.ID == d.ID && c.uid == d.uid && c.rv == d.rv }

// Book holds the claims on one kind of thing, one key each below one prefix. It is safe for concurrent use, by any
// number of servers.
type Book struct {
	store   storage.Interface
	prefix  string
	dress   func(obj runtime.Object, id string, o Owner) // makes obj say that id is o's; its annotations are not nil
	decode  func(runtime.Object) Claim
	newObj  func() runtime.Object
	newList func() runtime.Object
	destroy func()

	mu   sync.Mutex
	seen map[string]struct{} // things that were claimed when last looked: a hint where not to try, never a proof
}

// Claim makes id o's. ErrTaken means that id has an owner, who may be o itself. Any other error leaves it open whether the claim was made.
func (b *Book) Claim(ctx context.Context, id string, o Owner) error {
	obj := b.newObj()
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	m.SetName(id)
	m.SetUID(uuid.NewUUID())
	m.SetCreationTimestamp(metav1.Now())
	m.SetAnnotations(map[string]string{AnnotationServer: process})
	b.assign(obj, m, id, o)
	err = b.store.Create(ctx, b.key(id), obj, nil, 0)
	switch {
	case err == nil:
		b.note(id)
		return nil
	case storage.IsExist(err):
		b.note(id)
		return ErrTaken
	}
	return fmt.Errorf("claiming %s for Service %s: %w", id, o, err)
}

// Get returns the claim on id as etcd has it now, and whether there is one.
func (b *Book) Get(ctx context.Context, id string) (Claim, bool, error) {
	obj := b.newObj()
	if err := b.store.Get(ctx, b.key(id), storage.GetOptions{}, obj); err != nil {
		if storage.IsNotFound(err) {
			return Claim{}, false, nil
		}
		return Claim{}, false, fmt.Errorf("reading the claim on %s: %w", id, err)
	}
	return b.decode(obj), true, nil
}

// Release ends o's claim on id. A claim that is not o's stays, and one that is not there is no error: releasing twice,
// or late, or after somebody else claimed the thing, harms nobody.
func (b *Book) Release(ctx context.Context, id string, o Owner) error {
	c, found, err := b.Get(ctx, id)
	if err != nil {
		return err
	}
	if found && !c.Foreign && c.Owner.Same(o) {
		return b.Remove(ctx, c)
	}
	return nil
}

// Remove ends exactly the claim c. If c is gone or has been replaced by another claim on the same thing, nothing happens.
func (b *Book) Remove(ctx context.Context, c Claim) error {
	pre := &storage.Preconditions{UID: &c.uid, ResourceVersion: &c.rv}
	err := b.store.Delete(ctx, b.key(c.ID), b.newObj(), pre, func(context.Context, runtime.Object) error { return nil }, nil, storage.DeleteOptions{})
	if err != nil && !gone(err) {
		return fmt.Errorf("releasing %s from Service %s: %w", c.ID, c.Owner, err)
	}
	if err == nil {
		b.mu.Lock()
		delete(b.seen, c.ID)
		b.mu.Unlock()
	}
	return nil
}

// Rewrite makes the claim c say that it is o's, without ever letting go of the thing. If c is gone or has been replaced,
// nothing happens.
func (b *Book) Rewrite(ctx context.Context, c Claim, o Owner) error {
	pre := &storage.Preconditions{UID: &c.uid, ResourceVersion: &c.rv}
	err := b.store.GuaranteedUpdate(ctx, b.key(c.ID), b.newObj(), false, pre, func(obj runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
		m, err := meta.Accessor(obj)
		if err != nil {
			return nil, nil, err
		}
		b.assign(obj, m, c.ID, o)
		return obj, nil, nil
	}, nil)
	if err != nil && !gone(err) {
		return fmt.Errorf("rewriting the claim on %s for Service %s: %w", c.ID, o, err)
	}
	return nil
}

func (b *Book) assign(obj runtime.Object, m metav1.Object, id string, o Owner) {
	if m.GetAnnotations() == nil {
		m.SetAnnotations(map[string]string{})
	}
	m.GetAnnotations()[AnnotationServiceUID] = string(o.UID)
	b.dress(obj, id, o)
}

// gone reports whether a write failed because its preconditions do not hold.
func gone(err error) bool {
	return storage.IsNotFound(err) || storage.IsConflict(err) || storage.IsInvalidObj(err)
}

// List returns every claim, as of one moment.
func (b *Book) List(ctx context.Context) ([]Claim, error) {
	list := b.newList()
	opts := storage.ListOptions{Recursive: true, Predicate: storage.Everything}
	if err := b.store.GetList(ctx, b.prefix, opts, list); err != nil {
		return nil, fmt.Errorf("reading the claims under %s: %w", b.prefix, err)
	}
	objs, err := meta.ExtractList(list)
	if err != nil {
		return nil, err
	}
	claims := make([]Claim, len(objs))
	seen := make(map[string]struct{}, len(objs))
	for i, obj := range objs {
		claims[i] = b.decode(obj)
		seen[claims[i].ID] = struct{}{}
	}
	b.mu.Lock()
	b.seen = seen
	b.mu.Unlock()
	return claims, nil
}

// Close frees the connection to etcd.
func (b *Book) Close() { b.destroy() }

func (b *Book) key(id string) string { return path.Join(b.prefix, id) }

func (b *Book) note(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seen == nil {
		b.seen = map[string]struct{}{}
	}
	b.seen[id] = struct{}{}
}

// taken reports whether id was claimed when last looked.
func (b *Book) taken(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.seen[id]
	return ok
}

// known returns how many things were claimed when last looked.
func (b *Book) known() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.seen)
}
