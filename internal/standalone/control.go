package standalone

import (
	"context"
	"time"

	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/controller"
	"fairway.dev/fairway/internal/scheduler"
)

// evictAfter is how long Pods of a lost node wait for it to come back. A
// cluster's five minutes are for real machines that restart; here somebody is
// watching.
const evictAfter = 30 * time.Second

// startControllers runs what turns objects into other objects: the workload
// controllers, our endpoints controller and the scheduler.
func (s *system) startControllers() (string, error) {
	config, err := s.api.ClientConfig(apiserver.Scheduler())
	if err != nil {
		return "", err
	}
	s.background("scheduler", func(ctx context.Context) error {
		return scheduler.Run(ctx, scheduler.Options{ClientConfig: config, Logger: s.log.With("part", "scheduler")})
	})
	s.background("controllers", func(ctx context.Context) error {
		return controller.Run(ctx, controller.Options{
			ClientConfig: func(user string, groups ...string) (*rest.Config, error) {
				return s.api.ClientConfig(apiserver.Identity{User: user, Groups: groups})
			},
			RootCA:   s.api.CACert(),
			TokenKey: s.api.TokenKey(),
			Logger:   s.log.With("part", "controllers"),
		})
	})
	return "Deployments, StatefulSets, Jobs …, endpoints, scheduler", nil
}
