package claim

import (
	"context"
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/kubernetes/pkg/apis/core"
)

// portsPrefix is where port claims live below the server's etcd prefix. Upstream keeps one bitmap of all ports at
// /ranges/servicenodeports; this is another key, so the two never read each other's.
const portsPrefix = "/ranges/fairway-nodeports"

const annotationService = "fairway.dev/service" // "namespace/name" of the owner of a port claim

// Ports hands out node ports. A number is claimed for all protocols at once.
type Ports struct {
	*Book
	rng utilnet.PortRange
}

// NewPorts hands out the ports of rng, with claims kept in the etcd that opts leads to for Services.
func NewPorts(opts generic.RESTOptionsGetter, rng utilnet.PortRange) (*Ports, error) {
	if rng.Size <= 0 {
		return nil, fmt.Errorf("node port range %q is empty: give one such as 30000-32767", rng.String())
	}
	ro, err := opts.GetRESTOptions(core.Resource("services"), &core.Service{})
	if err != nil {
		return nil, fmt.Errorf("storage of node ports: %w", err)
	}
	newObj := func() runtime.Object { return &core.RangeAllocation{} }
	newList := func() runtime.Object { return &portList{} }
	store, destroy, err := generic.NewRawStorage(ro.StorageConfig.ForResource(core.Resource("servicenodeportallocations")), newObj, newList, portsPrefix)
	if err != nil {
		return nil, fmt.Errorf("storage of node ports: %w", err)
	}
	return &Ports{rng: rng, Book: &Book{
		store: store, prefix: portsPrefix, destroy: destroy, newObj: newObj, newList: newList,
		dress: func(obj runtime.Object, id string, o Owner) {
			ra := obj.(*core.RangeAllocation)
			ra.Annotations[annotationService] = o.String()
			ra.Range = id
		},
		decode: func(obj runtime.Object) Claim {
			ra := obj.(*core.RangeAllocation)
			o := Owner{UID: types.UID(ra.Annotations[AnnotationServiceUID])}
			o.Namespace, o.Name = splitName(ra.Annotations[annotationService])
			return Claim{ID: ra.Name, Owner: o, Mine: ra.Annotations[AnnotationServer] == process, Created: ra.CreationTimestamp.Time, uid: ra.UID, rv: ra.ResourceVersion}
		},
	}}, nil
}

// Range returns the ports that may be handed out.
func (p *Ports) Range() utilnet.PortRange { return p.rng }

// Take claims the port that o asks for. With dryRun it only says whether that would succeed.
func (p *Ports) Take(ctx context.Context, port int32, o Owner, dryRun bool) error {
	if !p.rng.Contains(int(port)) {
		return fmt.Errorf("provided port is %w. The range of valid ports is %s", ErrOutside, p.rng.String())
	}
	return takeID(ctx, p.Book, PortID(port), o, dryRun, "provided port is already allocated")
}

// Next claims any free port for o. The lowest ports of the range are used last: they are for those who ask for a
// certain port (KEP-3668). With dryRun it returns a port that seems free, and claims nothing.
func (p *Ports) Next(ctx context.Context, o Owner, dryRun bool) (int32, error) {
	size := uint64(p.rng.Size)
	low := lowerBand(size, 32, 128)
	at := func(base uint64) func(uint64) string {
		return func(i uint64) string { return strconv.FormatUint(uint64(p.rng.Base)+base+i, 10) }
	}
	id, err := p.next(ctx, [][]band{{{n: size - low, id: at(low)}}, {{n: low, id: at(0)}}}, o, dryRun)
	if err != nil {
		return 0, err
	}
	port, err := strconv.ParseInt(id, 10, 32)
	return int32(port), err
}

// PortID is the name of the claim on a port.
func PortID(port int32) string { return strconv.Itoa(int(port)) }

// lowerBand returns how many of the first of size things are kept for those who ask for a certain one:
// size/step, at least 16 and at most limit; none if there are no more than 16 (KEP-3070).
func lowerBand(size, step, limit uint64) uint64 {
	if size <= 16 {
		return 0
	}
	return min(max(16, size/step), limit)
}
