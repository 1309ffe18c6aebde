package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiservice "k8s.io/kubernetes/pkg/api/service"
	"k8s.io/kubernetes/pkg/apis/core"

	"fairway.dev/fairway/internal/apiserver/service/claim"
)

// releaseTimeout bounds the releases after a write, which go on when the client is gone.
const releaseTimeout = 10 * time.Second

// allocator gives Services what they lack and takes back what they give up.
type allocator struct {
	addrs *claim.Addresses
	ports *claim.Ports
	log   *slog.Logger
}

// ledger is what one write request has claimed. A request may try several times to store its object, each time after somebody
// else changed it; what one try claimed, the next one uses. Not safe for concurrent use: a request is one goroutine.
type ledger struct {
	*allocator
	dryRun bool

	owner    claim.Owner
	gotAddrs map[netip.Addr]bool // claimed in etcd by this request; true: used by the current try
	gotPorts map[int32]bool
	old      holdings // of the stored object that the current try replaces
	create   bool     // the current try replaces none
	open     bool     // the current try may have reached the storage
}

func newLedger(al *allocator, dryRun bool) *ledger {
	return &ledger{allocator: al, dryRun: dryRun, gotAddrs: map[netip.Addr]bool{}, gotPorts: map[int32]bool{}}
}

type ledgerKey struct{}

func withLedger(ctx context.Context, l *ledger) context.Context {
	return context.WithValue(ctx, ledgerKey{}, l)
}

func ledgerFrom(ctx context.Context) (*ledger, error) {
	if l, ok := ctx.Value(ledgerKey{}).(*ledger); ok {
		return l, nil
	}
	return nil, apierrors.NewInternalError(errors.New("a Service was written around its registry: use the registry's Create and Update"))
}

// try starts a try to store an object of owner in place of old (nil: there is none).
func (l *ledger) try(ctx context.Context, owner claim.Owner, old *core.Service) {
	l.open = false
	l.old, l.create = holdingsOf(old), old == nil
	if l.owner != owner {
		l.releaseClaims(ctx, holdings{}) // of an object that was not stored, and will not be
		l.owner = owner
	}
	for a := range l.gotAddrs {
		l.gotAddrs[a] = false
	}
	for p := range l.gotPorts {
		l.gotPorts[p] = false
	}
}

// claim completes svc: every address and port that it is to have and has not is claimed and written into it; every one that it
// names and old did not hold is claimed. What was claimed stays in the ledger, also on error.
func (l *ledger) claim(ctx context.Context, svc *core.Service) error {
	if err := l.claimAddresses(ctx, svc); err != nil {
		return err
	}
	if err := l.claimNodePorts(ctx, svc); err != nil {
		return err
	}
	if err := l.claimHealthCheckPort(ctx, svc); err != nil {
		return err
	}
	l.open = true
	return nil
}

func (l *ledger) claimAddresses(ctx context.Context, svc *core.Service) error {
	s := &svc.Spec
	if !needsClusterIP(svc) || isHeadless(svc) {
		return nil
	}
	ips := make([]string, max(len(s.IPFamilies), len(s.ClusterIPs)))
	copy(ips, s.ClusterIPs)
	// What is asked for comes first, so that it is not taken by chance for the other.
	for i, ip := range ips {
		if ip == "" {
			continue
		}
		addr, ok := parseAddr(ip)
		if !ok {
			return invalid(svc, field.Invalid(clusterIPsPath.Index(i), ip, "must be a valid IP address"))
		}
		if err := l.takeAddr(ctx, addr); err != nil {
			return refused(svc, err, field.Invalid(clusterIPsPath, s.ClusterIPs, fmt.Sprintf("failed to allocate IP %s: %v", ip, err)))
		}
	}
	for i, ip := range ips {
		if ip != "" {
			continue
		}
		addr, err := l.nextAddr(ctx, s.IPFamilies[i])
		if err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP for Service %q: %w", svc.Name, err))
		}
		ips[i] = addr.String()
	}
	if len(ips) > 0 {
		s.ClusterIPs, s.ClusterIP = ips, ips[0]
	}
	return nil
}

// claimNodePorts: ports of the same number and different protocols (DNS) share a node port, unless they ask otherwise. Those
// of different numbers may not ask for the same one, or only in an update: upstream is strange here, and so are we.
func (l *ledger) claimNodePorts(ctx context.Context, svc *core.Service) error {
	if !mayHaveNodePorts(svc) {
		return nil
	}
	ports := svc.Spec.Ports
	byPort, byNodePort := map[int32]int32{}, map[int32]int32{}
	for i := range ports {
		np := ports[i].NodePort
		if np == 0 {
			continue
		}
		path := field.NewPath("spec", "ports").Index(i).Child("nodePort")
		if other := byNodePort[np]; l.create && other != 0 && other != ports[i].Port {
			return invalid(svc, field.Invalid(path, np, fmt.Sprintf("provided port is already allocated, for port %d", other)))
		}
		byNodePort[np] = ports[i].Port
		if err := l.takePort(ctx, np); err != nil {
			return refused(svc, err, field.Invalid(path, np, err.Error()))
		}
		if byPort[ports[i].Port] == 0 {
			byPort[ports[i].Port] = np
		}
	}
	if !wantsNodePorts(svc) {
		return nil
	}
	for i := range ports {
		if ports[i].NodePort != 0 {
			continue
		}
		np := byPort[ports[i].Port]
		if np == 0 {
			var err error
			if np, err = l.nextPort(ctx); err != nil {
				return l.noPort(svc, "nodePort", err)
			}
			byPort[ports[i].Port] = np
		}
		ports[i].NodePort = np
	}
	return nil
}

func (l *ledger) claimHealthCheckPort(ctx context.Context, svc *core.Service) error {
	if !apiservice.NeedsHealthCheck(svc) {
		return nil
	}
	path := field.NewPath("spec", "healthCheckNodePort")
	if hc := svc.Spec.HealthCheckNodePort; hc != 0 {
		for i := range svc.Spec.Ports {
			if svc.Spec.Ports[i].NodePort == hc {
				return invalid(svc, field.Invalid(path, hc, fmt.Sprintf("provided port is already allocated, as nodePort of spec.ports[%d]", i)))
			}
		}
		if err := l.takePort(ctx, hc); err != nil {
			return refused(svc, err, field.Invalid(path, hc, fmt.Sprintf("failed to allocate requested HealthCheck NodePort %d: %v", hc, err)))
		}
		return nil
	}
	hc, err := l.nextPort(ctx)
	if err != nil {
		return l.noPort(svc, "HealthCheck NodePort", err)
	}
	svc.Spec.HealthCheckNodePort = hc
	return nil
}

func (l *ledger) noPort(svc *core.Service, what string, err error) error {
	if errors.Is(err, claim.ErrFull) {
		rng := l.ports.Range()
		err = fmt.Errorf("%w: every port of %s is in use; delete a Service that has node ports, or widen the range (--node-port-range)", err, rng.String())
	}
	return apierrors.NewInternalError(fmt.Errorf("failed to allocate a %s for Service %q: %w", what, svc.Name, err))
}

func (l *ledger) takeAddr(ctx context.Context, addr netip.Addr) error {
	if l.old.hasAddr(addr) {
		return nil
	}
	if _, mine := l.gotAddrs[addr]; !mine {
		if err := l.addrs.Take(ctx, addr, l.owner, l.dryRun); err != nil {
			return err
		}
	}
	l.gotAddrs[addr] = true
	return nil
}

func (l *ledger) nextAddr(ctx context.Context, family core.IPFamily) (netip.Addr, error) {
	for a, used := range l.gotAddrs {
		if !used && claim.FamilyOf(a) == family {
			l.gotAddrs[a] = true
			return a, nil
		}
	}
	a, err := l.addrs.Next(ctx, family, l.owner, l.dryRun)
	if err == nil {
		l.gotAddrs[a] = true
	}
	return a, err
}

func (l *ledger) takePort(ctx context.Context, port int32) error {
	if l.old.hasPort(port) {
		return nil
	}
	if _, mine := l.gotPorts[port]; !mine {
		if err := l.ports.Take(ctx, port, l.owner, l.dryRun); err != nil {
			return err
		}
	}
	l.gotPorts[port] = true
	return nil
}

func (l *ledger) nextPort(ctx context.Context) (int32, error) {
	for p, used := range l.gotPorts {
		if !used {
			l.gotPorts[p] = true
			return p, nil
		}
	}
	for range 8 {
		p, err := l.ports.Next(ctx, l.owner, l.dryRun)
		if err != nil {
			return 0, err
		}
		if _, again := l.gotPorts[p]; again { // a dry run claims nothing, and may be told the same port twice
			continue
		}
		l.gotPorts[p] = true
		return p, nil
	}
	return 0, claim.ErrFull
}

// settle releases what the request claimed in vain and what the object gave up, now that the outcome is known: stored is the
// object as stored, or nil with the error that storing it failed with. If it is not certain that nothing was stored, nothing is
// released: repair does it once that is certain. Errors of releasing are logged, and left to repair too.
func (l *ledger) settle(ctx context.Context, stored *core.Service, err error) {
	if l.dryRun {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	switch {
	case err == nil:
		var now holdings
		if !(stored.DeletionTimestamp != nil && len(stored.Finalizers) == 0) { // else its last finalizer went, and it too
			now = holdingsOf(stored)
		}
		l.releaseClaims(ctx, now)
		l.release(ctx, l.owner, l.old.minus(now))
	case !l.open || certain(err):
		l.releaseClaims(ctx, holdings{})
	default:
		if len(l.gotAddrs)+len(l.gotPorts) > 0 {
			l.log.Warn("not certain whether a Service was stored; what was claimed for it stays claimed until repair", "service", l.owner.String(), "error", err)
		}
	}
}

// certain reports whether an error of the generic store means that nothing was written: all that blame the request do. A
// timeout or a lost connection leaves it open.
func certain(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := status.Status().Code
	return code >= 400 && code < 500 && !apierrors.IsTimeout(err) && !apierrors.IsTooManyRequests(err)
}

// releaseClaims ends all claims of this request but those in keep.
func (l *ledger) releaseClaims(ctx context.Context, keep holdings) {
	var all holdings
	for a := range l.gotAddrs {
		all.addrs = append(all.addrs, a)
	}
	for p := range l.gotPorts {
		all.ports = append(all.ports, p)
	}
	if !l.dryRun {
		l.release(ctx, l.owner, all.minus(keep))
	}
	l.gotAddrs, l.gotPorts = map[netip.Addr]bool{}, map[int32]bool{}
}

// release ends owner's claims on h.
func (al *allocator) release(ctx context.Context, owner claim.Owner, h holdings) {
	for _, a := range h.addrs {
		if err := al.addrs.Release(ctx, a.String(), owner); err != nil {
			al.log.Error("cluster IP not released; repair will", "clusterIP", a.String(), "service", owner.String(), "error", err)
		}
	}
	for _, p := range h.ports {
		if err := al.ports.Release(ctx, claim.PortID(p), owner); err != nil {
			al.log.Error("node port not released; repair will", "port", p, "service", owner.String(), "error", err)
		}
	}
}

func invalid(svc *core.Service, errs ...*field.Error) error {
	return apierrors.NewInvalid(core.Kind("Service"), svc.Name, errs)
}

// refused is the answer when something asked for could not be claimed: Invalid if it cannot be had, InternalError if that is not known.
func refused(svc *core.Service, err error, as *field.Error) error {
	if errors.Is(err, claim.ErrTaken) || errors.Is(err, claim.ErrOutside) {
		return invalid(svc, as)
	}
	return apierrors.NewInternalError(fmt.Errorf("%s: %w", as.Field, err))
}
