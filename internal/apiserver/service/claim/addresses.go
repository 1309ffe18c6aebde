package claim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
)

// ErrNoCIDR: no ServiceCIDR of the family is ready.
var ErrNoCIDR = errors.New("no ServiceCIDR is ready")

// Addresses hands out Service addresses from all the ServiceCIDRs that are ready, as etcd has them at that moment.
type Addresses struct {
	*Book
	cidrs        storage.Interface
	cidrsPrefix  string
	cidrsDestroy func()
}

// NewAddresses reads ServiceCIDRs and keeps IPAddresses where opts says that the API server keeps them.
func NewAddresses(opts generic.RESTOptionsGetter) (*Addresses, error) {
	newObj := func() runtime.Object { return &networking.IPAddress{} }
	newList := func() runtime.Object { return &networking.IPAddressList{} }
	store, prefix, destroy, err := rawStorage(opts, "ipaddresses", newObj, newList)
	if err != nil {
		return nil, err
	}
	cidrs, cidrsPrefix, cidrsDestroy, err := rawStorage(opts, "servicecidrs",
		func() runtime.Object { return &networking.ServiceCIDR{} },
		func() runtime.Object { return &networking.ServiceCIDRList{} })
	if err != nil {
		destroy()
		return nil, err
	}
	return &Addresses{
		cidrs: cidrs, cidrsPrefix: cidrsPrefix, cidrsDestroy: cidrsDestroy,
		Book: &Book{store: store, prefix: prefix, destroy: destroy, newObj: newObj, newList: newList, dress: dressAddress, decode: decodeAddress},
	}, nil
}

// rawStorage opens the etcd storage of a networking.k8s.io resource without a watch cache before it: what is read must
// be what etcd has now.
func rawStorage(opts generic.RESTOptionsGetter, resource string, newObj, newList func() runtime.Object) (storage.Interface, string, func(), error) {
	ro, err := opts.GetRESTOptions(networking.Resource(resource), newObj())
	if err != nil {
		return nil, "", nil, fmt.Errorf("storage of %s: %w", resource, err)
	}
	prefix := "/" + strings.Trim(ro.ResourcePrefix, "/")
	s, destroy, err := generic.NewRawStorage(ro.StorageConfig, newObj, newList, prefix)
	if err != nil {
		return nil, "", nil, fmt.Errorf("storage of %s: %w", resource, err)
	}
	return s, prefix, destroy, nil
}

func dressAddress(obj runtime.Object, id string, o Owner) {
	ip := obj.(*networking.IPAddress)
	if ip.Labels == nil {
		ip.Labels = map[string]string{}
	}
	ip.Labels[networkingv1.LabelIPAddressFamily] = string(FamilyOf(netip.MustParseAddr(id)))
	ip.Labels[networkingv1.LabelManagedBy] = ipallocator.ControllerName
	ip.Spec.ParentRef = &networking.ParentReference{Resource: "services", Namespace: o.Namespace, Name: o.Name}
}

func decodeAddress(obj runtime.Object) Claim {
	ip := obj.(*networking.IPAddress)
	c := Claim{ID: ip.Name, Created: ip.CreationTimestamp.Time, uid: ip.UID, rv: ip.ResourceVersion}
	c.Mine = ip.Annotations[AnnotationServer] == process
	c.Foreign = ip.Labels[networkingv1.LabelManagedBy] != ipallocator.ControllerName
	addr, err := netip.ParseAddr(ip.Name)
	c.Unsound = err != nil || ip.Labels[networkingv1.LabelIPAddressFamily] != string(FamilyOf(addr))
	if ref := ip.Spec.ParentRef; ref != nil && ref.Group == "" && ref.Resource == "services" {
		c.Owner = Owner{Namespace: ref.Namespace, Name: ref.Name, UID: types.UID(ip.Annotations[AnnotationServiceUID])}
	} else {
		c.Unsound = true
	}
	return c
}

// Known returns the prefixes of all ServiceCIDRs, ready or not.
func (a *Addresses) Known(ctx context.Context) ([]netip.Prefix, error) {
	return a.prefixes(ctx, func(*networking.ServiceCIDR) bool { return true })
}

// Ready returns the prefixes of the ServiceCIDRs from which addresses may be handed out now: all but those that are
// being deleted or whose condition Ready is not True. One without that condition is ready: the controller that sets it
// may not run yet.
func (a *Addresses) Ready(ctx context.Context) ([]netip.Prefix, error) {
	return a.prefixes(ctx, func(sc *networking.ServiceCIDR) bool {
		return sc.DeletionTimestamp == nil && ready(sc.Status.Conditions)
	})
}

func (a *Addresses) prefixes(ctx context.Context, want func(*networking.ServiceCIDR) bool) ([]netip.Prefix, error) {
	var list networking.ServiceCIDRList
	if err := a.cidrs.GetList(ctx, a.cidrsPrefix, storage.ListOptions{Recursive: true, Predicate: storage.Everything}, &list); err != nil {
		return nil, fmt.Errorf("reading the ServiceCIDRs: %w", err)
	}
	var out []netip.Prefix
	for i := range list.Items {
		if !want(&list.Items[i]) {
			continue
		}
		for _, s := range list.Items[i].Spec.CIDRs {
			if p, err := netip.ParsePrefix(s); err == nil && !slices.Contains(out, p.Masked()) {
				out = append(out, p.Masked())
			}
		}
	}
	return out, nil
}

func ready(conditions []metav1.Condition) bool {
	for _, c := range conditions {
		if c.Type == networkingv1.ServiceCIDRConditionReady {
			return c.Status == metav1.ConditionTrue
		}
	}
	return true
}

// Take claims the address that o asks for. With dryRun it only says whether that would succeed.
func (a *Addresses) Take(ctx context.Context, addr netip.Addr, o Owner, dryRun bool) error {
	prefixes, err := a.Ready(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return offers(p, addr) }) {
		family := ofFamily(prefixes, FamilyOf(addr))
		if len(family) == 0 {
			return fmt.Errorf("the provided IP (%s) is %w: %w for %s", addr, ErrOutside, ErrNoCIDR, FamilyOf(addr))
		}
		return fmt.Errorf("the provided IP (%s) is %w. The range of valid IPs is %s", addr, ErrOutside, join(family))
	}
	return takeID(ctx, a.Book, addr.String(), o, dryRun, "provided IP is already allocated")
}

// Next claims any free address of the family for o, at random. The first addresses of each ServiceCIDR are used last:
// they are for those who ask for a certain address (KEP-3070). With dryRun it returns one that seems free, and claims nothing.
func (a *Addresses) Next(ctx context.Context, family core.IPFamily, o Owner, dryRun bool) (netip.Addr, error) {
	prefixes, err := a.Ready(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	prefixes = ofFamily(prefixes, family)
	if len(prefixes) == 0 {
		return netip.Addr{}, fmt.Errorf("%w for %s: kubectl get servicecidrs shows why", ErrNoCIDR, family)
	}
	var upper, lower []band
	for _, p := range prefixes {
		h := hosts(p)
		low := min(h.lower, h.n)
		upper = append(upper, band{n: h.n - low, id: func(i uint64) string { return add(h.first, low+i).String() }})
		lower = append(lower, band{n: low, id: func(i uint64) string { return add(h.first, i).String() }})
	}
	id, err := a.next(ctx, [][]band{upper, lower}, o, dryRun)
	if errors.Is(err, ErrFull) {
		return netip.Addr{}, fmt.Errorf("%w: every address of %s is in use; delete a Service or add a ServiceCIDR", ErrFull, join(prefixes))
	}
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.MustParseAddr(id), nil
}

// Close frees the connections to etcd.
func (a *Addresses) Close() {
	a.Book.Close()
	a.cidrsDestroy()
}

// FamilyOf returns the IP family of an address.
func FamilyOf(a netip.Addr) core.IPFamily {
	if a.Is4() || a.Is4In6() {
		return core.IPv4Protocol
	}
	return core.IPv6Protocol
}

func ofFamily(prefixes []netip.Prefix, family core.IPFamily) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		if FamilyOf(p.Addr()) == family {
			out = append(out, p)
		}
	}
	return out
}

func join(prefixes []netip.Prefix) string {
	s := make([]string, len(prefixes))
	for i, p := range prefixes {
		s[i] = p.String()
	}
	return strings.Join(s, ", ")
}

// run is the addresses of a prefix that may be handed out: first and the n-1 after it. The first lower of them are the lower band.
type run struct {
	first    netip.Addr
	n, lower uint64
}

// maxRun bounds a run so that sums of runs do not overflow. Larger IPv6 prefixes are handed out from their first 2⁵⁶
// addresses; which of the others may still be asked for.
const maxRun = 1 << 56

// hosts returns the run of a prefix: all but its first address, and but the last (broadcast) of an IPv4 one.
func hosts(p netip.Prefix) run {
	p = p.Masked()
	hostBits := p.Addr().BitLen() - p.Bits()
	size := uint64(math.MaxUint64)
	if hostBits < 64 {
		size = 1 << hostBits
	}
	r := run{first: p.Addr().Next(), n: min(size-1, maxRun), lower: lowerBand(size, 16, 256)}
	if p.Addr().Is4() && r.n > 0 {
		r.n--
	}
	return r
}

// offers reports whether a is one of the addresses that may be asked for from p: all that hosts counts, however many.
func offers(p netip.Prefix, a netip.Addr) bool {
	p = p.Masked()
	if !p.Contains(a) || a == p.Addr() {
		return false
	}
	return !a.Is4() || p.Contains(a.Next())
}

// add returns the address n after a.
func add(a netip.Addr, n uint64) netip.Addr {
	if a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
		return netip.AddrFrom4(b)
	}
	b := a.As16()
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	if lo+n < lo {
		hi++
	}
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo+n)
	return netip.AddrFrom16(b)
}
