// Package agent makes a node known to the API and keeps it so: the Node object
// with its addresses, Pod CIDRs, labels and conditions, and its lease.
//
// In go the facts of a node, out come writes through client-go. It runs
// nothing.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
)

// Upstream's kubelet renews every 10 s and is given up after 50 s. Here a lost
// node is noticed after 20 s (see controller.NodeTimes), which four renewals
// have to fit into.
const (
	leaseDuration = 20 * time.Second
	leaseRenewal  = 5 * time.Second
	statusPeriod  = 5 * time.Minute
)

// Facts are what a node tells of itself.
type Facts struct {
	Name        string
	Addrs       []netip.Addr
	PodCIDRs    []netip.Prefix
	Zone        string // "" for none
	Labels      map[string]string
	Annotations map[string]string
	ServerPort  int32 // of the node's HTTPS server
	Version     string
	// Runtime is the runtime's version, such as "containerd://1.7.0".
	Runtime string
	// BootID changes when the node has been off.
	BootID  string
	MaxPods int64
}

// Agent keeps one node known.
type Agent struct {
	client kubernetes.Interface
	facts  Facts
	log    *slog.Logger
}

// New returns an Agent that does nothing yet.
func New(client kubernetes.Interface, facts Facts, log *slog.Logger) *Agent {
	return &Agent{client: client, facts: facts, log: log.With("node", facts.Name)}
}

// Register creates the Node, or brings an existing one up to date, and tries
// until it has succeeded or ctx ends. The node is Ready from then on.
func (a *Agent) Register(ctx context.Context) error {
	for try := 0; ; try++ {
		err := a.register(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if try%20 == 0 {
			a.log.Info("cannot register the node yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(time.Duration(try+1)*50*time.Millisecond, time.Second)):
		}
	}
}

func (a *Agent) register(ctx context.Context) error {
	node := a.node()
	_, err := a.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return a.update(ctx)
	}
	return err
}

// update brings the existing Node's labels and status up to date.
func (a *Agent) update(ctx context.Context) error {
	nodes := a.client.CoreV1().Nodes()
	old, err := nodes.Get(ctx, a.facts.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	want := a.node()
	if len(old.Spec.PodCIDRs) > 0 && !equal(old.Spec.PodCIDRs, want.Spec.PodCIDRs) {
		return fmt.Errorf("node %s has Pod CIDRs %v in the API and %v here: a node's Pod CIDRs cannot change; delete the Node first", a.facts.Name, old.Spec.PodCIDRs, want.Spec.PodCIDRs)
	}
	next := old.DeepCopy()
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	maps.Copy(next.Labels, want.Labels)
	next.Spec.PodCIDR, next.Spec.PodCIDRs = want.Spec.PodCIDR, want.Spec.PodCIDRs
	if err := patch(ctx, a.client, old, next, ""); err != nil {
		return err
	}
	next = old.DeepCopy()
	next.Status = want.Status
	a.keepTransitions(old, next)
	return patch(ctx, a.client, old, next, "status")
}

// keepTransitions leaves the times of conditions that have not changed, and
// conditions of others.
func (a *Agent) keepTransitions(old, next *v1.Node) {
	for _, o := range old.Status.Conditions {
		found := false
		for i := range next.Status.Conditions {
			if n := &next.Status.Conditions[i]; n.Type == o.Type {
				found = true
				if n.Status == o.Status {
					n.LastTransitionTime = o.LastTransitionTime
				}
			}
		}
		if !found {
			next.Status.Conditions = append(next.Status.Conditions, o)
		}
	}
	next.Status.VolumesAttached, next.Status.VolumesInUse = old.Status.VolumesAttached, old.Status.VolumesInUse
}

func patch(ctx context.Context, client kubernetes.Interface, old, next *v1.Node, sub string) error {
	before, err := json.Marshal(old)
	if err != nil {
		return err
	}
	after, err := json.Marshal(next)
	if err != nil {
		return err
	}
	data, err := strategicpatch.CreateTwoWayMergePatch(before, after, v1.Node{})
	if err != nil || string(data) == "{}" {
		return err
	}
	var subs []string
	if sub != "" {
		subs = append(subs, sub)
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, old.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, subs...)
	return err
}

// Run renews the lease and the status until ctx ends.
func (a *Agent) Run(ctx context.Context) {
	var lease *coordinationv1.Lease
	renew := func() {
		var err error
		if lease, err = a.renew(ctx, lease); err != nil && ctx.Err() == nil {
			a.log.Warn("cannot renew the node's lease", "err", err)
		}
	}
	renew()
	leases, status := time.NewTicker(leaseRenewal), time.NewTicker(statusPeriod)
	defer leases.Stop()
	defer status.Stop()
	wasAway := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-leases.C:
			renew()
			if lease == nil {
				wasAway = true
			} else if wasAway {
				// The API may have called the node unreachable meanwhile.
				wasAway = a.tryUpdate(ctx) != nil
			}
		case <-status.C:
			a.tryUpdate(ctx) //nolint:errcheck // logged; the next one follows
		}
	}
}

func (a *Agent) tryUpdate(ctx context.Context) error {
	err := a.update(ctx)
	switch {
	case apierrors.IsNotFound(err):
		err = a.register(ctx)
	case ctx.Err() != nil:
		return nil
	}
	if err != nil {
		a.log.Warn("cannot report the node's status", "err", err)
	}
	return err
}

func (a *Agent) renew(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseRenewal)
	defer cancel()
	leases := a.client.CoordinationV1().Leases(v1.NamespaceNodeLease)
	now := metav1.NewMicroTime(time.Now())
	if lease == nil {
		got, err := leases.Get(ctx, a.facts.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: a.facts.Name, Namespace: v1.NamespaceNodeLease},
				Spec: coordinationv1.LeaseSpec{HolderIdentity: &a.facts.Name, LeaseDurationSeconds: ptr.To(int32(leaseDuration / time.Second)), RenewTime: &now}}
			if n, err := a.client.CoreV1().Nodes().Get(ctx, a.facts.Name, metav1.GetOptions{}); err == nil {
				l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
			}
			got, err = leases.Create(ctx, l, metav1.CreateOptions{})
			return orNil(got, err), err
		}
		if err != nil {
			return nil, err
		}
		lease = got
	}
	next := lease.DeepCopy()
	next.Spec.RenewTime, next.Spec.HolderIdentity = &now, &a.facts.Name
	next.Spec.LeaseDurationSeconds = ptr.To(int32(leaseDuration / time.Second))
	got, err := leases.Update(ctx, next, metav1.UpdateOptions{})
	return orNil(got, err), err
}

func orNil(l *coordinationv1.Lease, err error) *coordinationv1.Lease {
	if err != nil {
		return nil
	}
	return l
}

// node is the Node as it should be.
func (a *Agent) node() *v1.Node {
	f := &a.facts
	labels := map[string]string{
		v1.LabelHostname: f.Name, v1.LabelOSStable: runtime.GOOS, v1.LabelArchStable: runtime.GOARCH,
	}
	if f.Zone != "" {
		labels[v1.LabelTopologyZone] = f.Zone
	}
	maps.Copy(labels, f.Labels)
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: f.Name, Labels: labels, Annotations: f.Annotations}}
	for _, c := range f.PodCIDRs {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, c.String())
	}
	if len(n.Spec.PodCIDRs) > 0 {
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	}
	n.Status = a.status()
	return n
}

func (a *Agent) status() v1.NodeStatus {
	f := &a.facts
	var s v1.NodeStatus
	for _, addr := range f.Addrs {
		s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: addr.String()})
	}
	s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: f.Name})
	s.DaemonEndpoints.KubeletEndpoint.Port = f.ServerPort
	s.Capacity = Capacity(f.MaxPods)
	s.Allocatable = s.Capacity.DeepCopy()
	now := metav1.Now()
	for _, c := range []struct {
		kind            v1.NodeConditionType
		ok              v1.ConditionStatus
		reason, message string
	}{
		{v1.NodeMemoryPressure, v1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"},
		{v1.NodeDiskPressure, v1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"},
		{v1.NodePIDPressure, v1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available"},
		{v1.NodeNetworkUnavailable, v1.ConditionFalse, "RouteCreated", "the Pod network is up"},
		{v1.NodeReady, v1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"},
	} {
		s.Conditions = append(s.Conditions, v1.NodeCondition{Type: c.kind, Status: c.ok, Reason: c.reason, Message: c.message,
			LastHeartbeatTime: now, LastTransitionTime: now})
	}
	s.NodeInfo = v1.NodeSystemInfo{OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH, KubeletVersion: f.Version,
		ContainerRuntimeVersion: f.Runtime, KernelVersion: kernel(), OSImage: osImage(), MachineID: line("/etc/machine-id"),
		SystemUUID: line("/sys/class/dmi/id/product_uuid"), BootID: f.BootID}
	return s
}

// Capacity is what a node has: all of the machine, each node anew. Nothing is
// set aside, so that it is also what Pods may have.
func Capacity(maxPods int64) v1.ResourceList {
	return v1.ResourceList{
		v1.ResourceCPU:              *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		v1.ResourceMemory:           *resource.NewQuantity(memory(), resource.BinarySI),
		v1.ResourcePods:             *resource.NewQuantity(maxPods, resource.DecimalSI),
		v1.ResourceEphemeralStorage: *resource.NewQuantity(disk(), resource.BinarySI),
	}
}

func memory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit)
}

func disk() int64 {
	var st unix.Statfs_t
	if unix.Statfs("/", &st) != nil {
		return 0
	}
	return int64(st.Blocks) * st.Bsize
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func osImage() string {
	b, err := os.ReadFile("/etc/os-release")
	if errors.Is(err, os.ErrNotExist) {
		return runtime.GOOS
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), "PRETTY_NAME="); ok {
			if s, err := strconv.Unquote(v); err == nil {
				return s
			}
			return v
		}
	}
	return runtime.GOOS
}

func line(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
