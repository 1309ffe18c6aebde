package main

import (
	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/proxy/kubeproxy"
)

func newProxyCmd() *cobra.Command {
	var o kubeproxy.Options
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Make packets to Services reach their Pods, in place of kube-proxy",
		Long: `Makes packets to Services reach their Pods, in place of kube-proxy: it takes
kube-proxy's flags and configuration file, needs its permissions, and serves its
health checks and metrics. See docs/migrate-from-kube-proxy.md.`,
		Example: `  fairway-node proxy --config /var/lib/kube-proxy/config.conf --hostname-override node-1
  fairway-node proxy --cleanup`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.Run(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}
