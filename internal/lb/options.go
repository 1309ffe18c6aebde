package lb

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/lb/ipam"
)

const (
	fieldManager = "fairway-lb"
	leaseName    = "fairway-lb"
)

// Options are what RunController needs.
type Options struct {
	// Config is how to reach the API server. Its rate limits are not used: the
	// server's own (priority and fairness) are.
	Config *rest.Config
	// Classless has Services without a loadBalancerClass handled too. Set it
	// where no other load balancer does that.
	Classless bool
	// Classes are loadBalancerClasses whose Services are handled too: that of a
	// load balancer whose place this one takes.
	Classes []string
	// InstallCRDs puts Fairway's custom resource definitions into the cluster.
	InstallCRDs bool
	// Identity names this controller in the Lease; by default host name and a
	// random suffix. One that is the same at every start gets its own Lease back
	// at once after a crash; only one process may have it.
	Identity string
	// LeaseNamespace holds the Lease "fairway-lb"; kube-system by default.
	LeaseNamespace string
	// LeaseDuration is how long the others wait for a leader that has gone
	// silent; 15 s by default, 3 s at least. A leader that stops in good order
	// is followed at once.
	LeaseDuration time.Duration
	// PortBusy says whether something on a node that is no Service has a port of
	// the node's address, for pools with provider NodeAddress. May be nil.
	PortBusy func(netip.Addr, ipam.Port) bool
	// Monitor is told how it goes; nil: nobody is.
	Monitor *Monitor
	// Logger must be set.
	Logger *slog.Logger
}

// RunController gives Services their addresses for as long as ctx lasts,
// whenever it is this controller's turn to lead. It returns when everything it
// started has stopped; an error means that it could not start.
func RunController(ctx context.Context, o Options) error {
	if o.Config == nil || o.Logger == nil {
		return errors.New("lb: Options.Config and Options.Logger must be set")
	}
	if o.LeaseNamespace == "" {
		o.LeaseNamespace = metav1.NamespaceSystem
	}
	if o.LeaseDuration == 0 {
		o.LeaseDuration = 15 * time.Second
	}
	o.LeaseDuration = max(o.LeaseDuration, 3*time.Second)
	if o.Monitor == nil {
		o.Monitor = NewMonitor()
	}
	o.Monitor.patience.Store(int64(o.LeaseDuration))
	if o.Identity == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("lb: host name for the Lease: %w", err)
		}
		o.Identity = host + "_" + rand.Text()[:8]
	}
	config := rest.CopyConfig(o.Config)
	config.QPS = -1
	compact := rest.CopyConfig(config)
	compact.ContentType, compact.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	client, err := kubernetes.NewForConfig(compact)
	if err != nil {
		return fmt.Errorf("lb: %w", err)
	}
	fairway, err := v1alpha1.NewClient(config)
	if err != nil {
		return fmt.Errorf("lb: %w", err)
	}
	if o.InstallCRDs {
		if err := v1alpha1.Install(ctx, config); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("lb: %w", err)
		}
	}
	lock := &heldLock{monitor: o.Monitor, Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: o.LeaseNamespace, Name: leaseName},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.Identity},
	}}
	for ctx.Err() == nil {
		// Losing the lead ends one term; then this controller stands again.
		done := make(chan struct{})
		lock.held.Store(false)
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock:            lock,
			Name:            leaseName,
			LeaseDuration:   o.LeaseDuration,
			RenewDeadline:   o.LeaseDuration * 2 / 3,
			RetryPeriod:     o.LeaseDuration / 8,
			ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(term context.Context) {
					defer close(done)
					o.Logger.Info("load balancer controller leads", "identity", o.Identity)
					newController(o, client, fairway).run(term)
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("lb: leader election: %w", err)
		}
		elector.Run(ctx)
		if lock.held.Load() {
			<-done
		}
	}
	return nil
}

// heldLock notes whether the lock was ever got: the elector starts the leader's
// work in a goroutine then, and does not say so itself. It also notes how the
// election goes.
type heldLock struct {
	resourcelock.Interface
	monitor *Monitor
	held    atomic.Bool
}

func (l *heldLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	l.monitor.tried.Store(time.Now().UnixNano())
	r, raw, err := l.Interface.Get(ctx)
	if err == nil {
		l.monitor.elected.Store(time.Now().UnixNano())
	}
	return r, raw, err
}

func (l *heldLock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	l.monitor.tried.Store(time.Now().UnixNano())
	return l.note(r, l.Interface.Create(ctx, r))
}

func (l *heldLock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	l.monitor.tried.Store(time.Now().UnixNano())
	return l.note(r, l.Interface.Update(ctx, r))
}

func (l *heldLock) note(r resourcelock.LeaderElectionRecord, err error) error {
	if err == nil {
		l.monitor.elected.Store(time.Now().UnixNano())
		if r.HolderIdentity == l.Identity() {
			l.monitor.renewed.Store(int64(time.Since(epoch)))
			l.held.Store(true)
		}
	}
	return err
}
