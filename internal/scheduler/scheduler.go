// Package scheduler places Pods on Nodes: upstream's scheduler, with its
// default profile, run inside this process. In goes a client; what comes out
// is spec.nodeName of Pods, the condition PodScheduled with the reason where
// no Node fits, and Events. It writes nothing else.
package scheduler

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/go-logr/logr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	upstream "k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/profile"
)

// Options configure Run.
type Options struct {
	// ClientConfig is for the user system:kube-scheduler or one with its rights.
	ClientConfig *rest.Config
	Logger       *slog.Logger
}

// Run schedules until ctx ends and returns when all it started has stopped. Its
// error is one of configuration, at the start. One scheduler runs at a time:
// in a cluster of several processes the caller sees to that.
func Run(ctx context.Context, opts Options) error {
	config := rest.CopyConfig(opts.ClientConfig)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("scheduler: client: %w", err)
	}
	defaults, err := latest.Default()
	if err != nil {
		return fmt.Errorf("scheduler: default configuration: %w", err)
	}
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(opts.Logger.Handler()))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	defer broadcaster.Shutdown()
	// Not the controllers' caches: the scheduler's Pods leave out those that
	// have ended.
	caches := upstream.NewInformerFactory(client, 0, nil)
	s, err := upstream.New(ctx, client, caches, nil, profile.NewRecorderFactory(broadcaster),
		upstream.WithComponentConfigVersion(defaults.APIVersion),
		upstream.WithKubeConfig(opts.ClientConfig),
		upstream.WithProfiles(defaults.Profiles...),
		upstream.WithParallelism(defaults.Parallelism),
		upstream.WithPodInitialBackoffSeconds(defaults.PodInitialBackoffSeconds),
		upstream.WithPodMaxBackoffSeconds(defaults.PodMaxBackoffSeconds),
	)
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("scheduler: events: %w", err)
	}
	caches.Start(ctx.Done())
	defer caches.Shutdown()
	defer cancel() // before Shutdown, which waits for the informers to end
	caches.WaitForCacheSync(ctx.Done())
	if err := s.WaitForHandlersSync(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("scheduler: %w", err)
	}
	s.Run(ctx)
	return nil
}
