package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/lb"
	"fairway.dev/fairway/internal/lb/daemon"
	"fairway.dev/fairway/internal/lb/status"
)

func newLBCmd() *cobra.Command {
	var flags daemon.Flags
	cmd := &cobra.Command{
		Use:   "lb",
		Short: "A load balancer for bare metal: external addresses for Services",
		Long: `Gives Services of type LoadBalancer (class fairway.dev/lb) external addresses
from IPPools, and answers for these addresses on the network by ARP and NDP: of
the nodes that can, one does for each address, and if it dies another takes over
in less than two seconds. See docs/load-balancer.md.`,
		Example: `  fairway-node lb                          # in a Pod with host network on every node, see deploy/
  fairway-node lb --announce=false         # only the controller
  fairway-node lb status --kubeconfig ~/.kube/config`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return flags.Run(cmd.Context()) },
	}
	flags.Add(cmd.Flags())
	cmd.AddCommand(newLBStatusCmd(), newLBReleaseCmd())
	return cmd
}

func newLBStatusCmd() *cobra.Command {
	var flags daemon.Flags
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show pools, addresses, who announces each and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := flags.Config()
			if err != nil {
				return err
			}
			return status.Print(cmd.Context(), config, cmd.OutOrStdout(), output)
		},
	}
	flags.AddClient(cmd.Flags())
	cmd.Flags().StringVarP(&output, "output", "o", "text", "how to print: text or json")
	return cmd
}

func newLBReleaseCmd() *cobra.Command {
	var flags daemon.Flags
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Let go of Services and pools, for another load balancer to take over",
		Long: `Takes the controller's finalizer, annotation and condition away from Services and
pools. Services keep their addresses; another load balancer can take them over,
and Services can be deleted without Fairway. Stop the controllers first.`,
		Example: `  kubectl -n kube-system scale deployment fairway-lb --replicas=0
  fairway-node lb release`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := flags.Config()
			if err != nil {
				return err
			}
			done, err := lb.Release(cmd.Context(), config, flags.LeaseNamespace)
			fmt.Fprintf(cmd.OutOrStdout(), "let go of %d Services and %d pools\n", done.Services, done.Pools)
			return err
		},
	}
	flags.AddClient(cmd.Flags())
	flags.AddLease(cmd.Flags())
	return cmd
}
