package announce

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairway.dev/fairway/api/v1alpha1"
)

const (
	// reportInterval is how often an Announcer is written at most.
	reportInterval = 500 * time.Millisecond
	// renewInterval is how often it is written at least.
	renewInterval = 30 * time.Second
	// reportMax is how many addresses an Announcer lists at most: the store takes
	// objects of a megabyte and a half.
	reportMax = 5000
)

// report is what an Announcer is to say.
type report struct {
	uid    string // of the Node
	status v1alpha1.AnnouncerStatus
}

// report describes what this node announces now.
func (s *speaker) report() report {
	st := v1alpha1.AnnouncerStatus{
		Phase: s.members.phase.String(), Live: append([]string{}, s.members.names()...), AddressCount: int64(len(s.claims)),
		Mute:      append([]string{}, s.members.mutes()...),
		Addresses: []v1alpha1.AnnouncedAddress{},
	}
	counts := map[uintptr]int{}
	addrs := slices.SortedFunc(maps.Keys(s.claims), netip.Addr.Compare)
	for _, a := range addrs[:min(len(addrs), reportMax)] {
		c := s.claims[a]
		st.Addresses = append(st.Addresses, v1alpha1.AnnouncedAddress{
			Address: a.String(), Links: c.names, Since: metav1.NewMicroTime(c.since), Reason: s.reason(a, counts),
		})
	}
	return report{uid: s.nodes[s.NodeName].uid, status: st}
}

// reason says why this node announces an address. Most addresses share their
// set of nodes: counts has how many of a set are alive.
func (s *speaker) reason(a netip.Addr, counts map[uintptr]int) string {
	e := s.entries[a]
	among := len(e.Nodes)
	set := reflect.ValueOf(e.Nodes).Pointer()
	alive, ok := counts[set]
	if !ok {
		for n := range e.Nodes {
			if _, ok := s.members.alive[n]; ok {
				alive++
			}
		}
		counts[set] = alive
	}
	what := "eligible"
	if e.Local {
		what = "with a ready endpoint"
	}
	switch {
	case alive == 1 && among == 1:
		return "only node " + what
	case alive == 1:
		return fmt.Sprintf("only one alive of %d nodes %s", among, what)
	}
	return fmt.Sprintf("elected of %d nodes alive and %s", alive, what)
}

// reporter writes the Announcer of one node (or nothing, without a client), in a goroutine of its own: an API
// server that is slow or away holds nobody up.
type reporter struct {
	client *v1alpha1.Client
	node   string
	logger *slog.Logger
	next   chan report // the latest
	quit   chan struct{}
	done   chan struct{}
}

func newReporter(client *v1alpha1.Client, node string, logger *slog.Logger) *reporter {
	r := &reporter{client: client, node: node, logger: logger, next: make(chan report, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go r.run()
	return r
}

// set replaces what is to be written.
func (r *reporter) set(x report) {
	for {
		select {
		case r.next <- x:
			return
		case <-r.next:
		}
	}
}

// stop writes the last report and ends.
func (r *reporter) stop() {
	close(r.quit)
	<-r.done
}

func (r *reporter) run() {
	defer close(r.done)
	var last report
	have := false
	write := func(limit time.Duration) bool {
		if r.client == nil {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		err := r.write(ctx, last)
		if err != nil {
			r.logger.Debug("write Announcer, will try again", "err", err)
		}
		return err == nil
	}
	for {
		wait := renewInterval
		select {
		case <-r.quit:
			select {
			case last = <-r.next:
				write(2 * time.Second)
			default:
			}
			return
		case last = <-r.next:
			have = true
		case <-time.After(wait):
		}
		if have && !write(10*time.Second) {
			r.setIfNone(last)
		}
		select {
		case <-r.quit:
		case <-time.After(reportInterval):
		}
	}
}

// setIfNone has a report written again unless a newer one is waiting.
func (r *reporter) setIfNone(x report) {
	select {
	case r.next <- x:
	default:
	}
}

func (r *reporter) write(ctx context.Context, x report) error {
	x.status.RenewTime = metav1.NowMicro()
	patch, err := json.Marshal(map[string]any{"status": x.status})
	if err != nil {
		return err
	}
	announcers := r.client.Announcers()
	_, err = announcers.Patch(ctx, r.node, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "fairway-announce"}, "status")
	if !apierrors.IsNotFound(err) {
		return err
	}
	a := &v1alpha1.Announcer{ObjectMeta: metav1.ObjectMeta{Name: r.node}}
	if x.uid != "" {
		a.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: r.node, UID: types.UID(x.uid)}}
	}
	if _, err := announcers.Create(ctx, a, metav1.CreateOptions{FieldManager: "fairway-announce"}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	_, err = announcers.Patch(ctx, r.node, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "fairway-announce"}, "status")
	return err
}
