// Package status tells people how load-balancer addresses are: which pools
// there are and how full, who has which address, which node announces it and
// why, and which Services still wait. It only reads, through any API server.
package status

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/lb/ipam"
)

// staleAfter is how old an Announcer's last renewal is when its node is taken
// for gone; a running one renews it every 30 s.
const staleAfter = 75 * time.Second

// Report is how everything is. Its JSON form is what --output json prints.
type Report struct {
	Pools     []Pool    `json:"pools"`
	Addresses []Address `json:"addresses"`
	// Pending are Services that lack an address they ask for.
	Pending []Pending `json:"pending"`
	Nodes   []Node    `json:"nodes"`
}

// Pool is an IPPool.
type Pool struct {
	Name       string         `json:"name"`
	Provider   string         `json:"provider"`
	Addresses  []string       `json:"addresses,omitempty"`
	IPv4       v1alpha1.Usage `json:"ipv4"`
	IPv6       v1alpha1.Usage `json:"ipv6"`
	Services   int64          `json:"services"`
	Kept       int64          `json:"kept,omitempty"`
	AutoAssign bool           `json:"autoAssign"`
	Announce   string         `json:"announce"`
	Ready      bool           `json:"ready"`
	Reason     string         `json:"reason,omitempty"`
	Message    string         `json:"message,omitempty"`
}

// Address is an address that Services have.
type Address struct {
	Address  string   `json:"address"`
	Services []string `json:"services"`
	// Pool is where it was given out of.
	Pool string `json:"pool,omitempty"`
	// Node announces it; empty if none does.
	Node string `json:"node,omitempty"`
	// Also are nodes that say they announce it too: two answer, for a moment.
	Also  []string   `json:"also,omitempty"`
	Links []string   `json:"links,omitempty"`
	Via   string     `json:"via"` // "arp", "ndp" or "none"
	Since *time.Time `json:"since,omitempty"`
	Why   string     `json:"why"`
}

// Pending is a Service that lacks an address.
type Pending struct {
	Service string    `json:"service"`
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
}

// Node is an announcer.
type Node struct {
	Name      string   `json:"name"`
	Phase     string   `json:"phase"` // Joining, Ready, NoLink, Stopped, or Silent
	Announces int64    `json:"announces"`
	Hears     []string `json:"hears"`
	// Deaf are nodes that live, and whose heartbeats do not reach this one.
	Deaf    []string  `json:"doesNotHear,omitempty"`
	Renewed time.Time `json:"renewed"`
}

// Collect reads how everything is at the moment now.
func Collect(ctx context.Context, client kubernetes.Interface, fairway *v1alpha1.Client, now time.Time) (*Report, error) {
	pools, err := fairway.IPPools().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list IPPools (has the load balancer ever run in this cluster?): %w", err)
	}
	announcers, err := fairway.Announcers().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Announcers: %w", err)
	}
	services, err := client.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Services: %w", err)
	}
	return build(pools.Items, announcers.Items, services.Items, now), nil
}

// build makes the report; it is pure.
func build(pools []v1alpha1.IPPool, announcers []v1alpha1.Announcer, services []corev1.Service, now time.Time) *Report {
	r := &Report{Pools: []Pool{}, Addresses: []Address{}, Pending: []Pending{}, Nodes: []Node{}}
	for i := range pools {
		r.Pools = append(r.Pools, poolOf(&pools[i]))
	}
	claims := map[string][]claim{}
	for i := range announcers {
		a := &announcers[i]
		n := Node{Name: a.Name, Phase: cmp.Or(a.Status.Phase, "Joining"), Announces: a.Status.AddressCount, Hears: []string{}, Deaf: a.Status.Mute, Renewed: a.Status.RenewTime.Time}
		for _, peer := range a.Status.Live {
			if peer != a.Name && !slices.Contains(a.Status.Mute, peer) {
				n.Hears = append(n.Hears, peer)
			}
		}
		if n.Phase != "Stopped" && now.Sub(n.Renewed) > staleAfter {
			n.Phase = "Silent"
		}
		r.Nodes = append(r.Nodes, n)
		if n.Phase != "Ready" {
			continue
		}
		for _, x := range a.Status.Addresses {
			claims[x.Address] = append(claims[x.Address], claim{a.Name, a.Status.Live, x})
		}
	}
	byAddress := map[string]*Address{}
	for i := range services {
		svc := &services[i]
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		key := svc.Namespace + "/" + svc.Name
		if c := meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ConditionAddress); c != nil && c.Status != metav1.ConditionTrue {
			r.Pending = append(r.Pending, Pending{Service: key, Reason: c.Reason, Message: c.Message, Since: c.LastTransitionTime.Time})
		}
		if !slices.Contains(svc.Finalizers, v1alpha1.Finalizer) {
			continue
		}
		origins := strings.Split(svc.Annotations[v1alpha1.AnnotationAllocatedFrom], ",")
		for i, in := range svc.Status.LoadBalancer.Ingress {
			a := byAddress[in.IP]
			if a == nil {
				a = &Address{Address: in.IP, Pool: origins[min(i, len(origins)-1)]}
				byAddress[in.IP] = a
				explain(a, svc, pools, announcers, claims[in.IP])
			}
			a.Services = append(a.Services, key)
		}
	}
	for _, a := range byAddress {
		slices.Sort(a.Services)
		r.Addresses = append(r.Addresses, *a)
	}
	slices.SortFunc(r.Addresses, func(a, b Address) int {
		x, _ := netip.ParseAddr(a.Address)
		y, _ := netip.ParseAddr(b.Address)
		return x.Compare(y)
	})
	slices.SortFunc(r.Pools, func(a, b Pool) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(r.Pending, func(a, b Pending) int { return strings.Compare(a.Service, b.Service) })
	slices.SortFunc(r.Nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return r
}

func poolOf(p *v1alpha1.IPPool) Pool {
	out := Pool{
		Name: p.Name, Provider: string(cmp.Or(p.Spec.Provider, v1alpha1.ProviderRanges)), Addresses: p.Spec.Addresses,
		IPv4: p.Status.IPv4, IPv6: p.Status.IPv6, Services: p.Status.Services, Kept: p.Status.Kept,
		AutoAssign: p.Spec.AutoAssign == nil || *p.Spec.AutoAssign,
		Announce:   string(cmp.Or(p.Spec.Announce.Mode, v1alpha1.AnnounceL2)),
	}
	if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		out.Ready, out.Reason, out.Message = c.Status == metav1.ConditionTrue, c.Reason, c.Message
	} else {
		out.Reason, out.Message = "Unknown", "no load-balancer controller has looked at it yet"
	}
	return out
}

// claim is an announcer's word that it announces an address.
type claim struct {
	node  string
	live  []string
	entry v1alpha1.AnnouncedAddress
}

// explain fills in who announces an address and why, or why nobody does.
func explain(a *Address, svc *corev1.Service, pools []v1alpha1.IPPool, announcers []v1alpha1.Announcer, claims []claim) {
	addr, _ := netip.ParseAddr(a.Address)
	a.Via = "arp"
	if addr.Is6() {
		a.Via = "ndp"
	}
	mode, provider := v1alpha1.AnnounceL2, v1alpha1.ProviderRanges
	for _, p := range pools {
		if p.Name == a.Pool || contains(&p, addr) {
			mode, provider = cmp.Or(p.Spec.Announce.Mode, mode), cmp.Or(p.Spec.Provider, provider)
		}
	}
	if v := svc.Annotations[v1alpha1.AnnotationAnnounce]; strings.EqualFold(v, string(v1alpha1.AnnounceNone)) || strings.EqualFold(v, string(v1alpha1.AnnounceL2)) {
		mode = v1alpha1.AnnounceL2
		if strings.EqualFold(v, string(v1alpha1.AnnounceNone)) {
			mode = v1alpha1.AnnounceNone
		}
	}
	switch {
	case provider == v1alpha1.ProviderNodeAddress:
		a.Via, a.Why = "none", "it is a node's own address"
		return
	case mode == v1alpha1.AnnounceNone:
		a.Via, a.Why = "none", "announcement is None: somebody else routes it"
		return
	}
	// Whoever took it last is right, before those without a link for it; others
	// count only if it hears them.
	slices.SortFunc(claims, func(x, y claim) int {
		if a, b := len(x.entry.Links) > 0, len(y.entry.Links) > 0; a != b {
			return map[bool]int{true: -1, false: 1}[a]
		}
		return y.entry.Since.Compare(x.entry.Since.Time)
	})
	if len(claims) > 0 {
		c := claims[0]
		since := c.entry.Since.Time
		a.Node, a.Links, a.Since, a.Why = c.node, c.entry.Links, &since, c.entry.Reason
		if len(a.Links) == 0 {
			a.Why = "elected, but none of its links fits: see spec.announce.interfaces of the pool"
		}
		for _, other := range claims[1:] {
			if slices.Contains(c.live, other.node) {
				a.Also = append(a.Also, other.node)
			}
		}
		return
	}
	switch {
	case len(announcers) == 0:
		a.Why = "nobody announces it: no announcer has ever run (fairway-node lb on the nodes)"
	case svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal:
		a.Why = "nobody announces it yet: externalTrafficPolicy is Local, and no eligible node that is alive has a ready endpoint"
	default:
		a.Why = "nobody announces it yet: no eligible node is alive"
	}
}

func contains(p *v1alpha1.IPPool, addr netip.Addr) bool {
	return slices.ContainsFunc(p.Spec.Addresses, func(s string) bool {
		r, err := ipam.ParseRange(s)
		return err == nil && r.Contains(addr)
	})
}
