package main

import (
	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"fairway.dev/fairway/internal/lb/status"
	"fairway.dev/fairway/internal/standalone"
)

func newLBCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lb",
		Short: "Load-balancer addresses",
	}
	dataDir := standalone.DefaultOptions().DataDir
	var kubeconfig, output string
	sub := &cobra.Command{
		Use:   "status",
		Short: "Show pools, addresses, who announces each and why",
		Long: `Show address pools and their use, the addresses that Services have, which node
announces each and why, and the Services that wait for one. It works on any
cluster that has Fairway's load balancer.`,
		Example: `  fairway lb status
  fairway lb status --kubeconfig ~/.kube/config --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			file := kubeconfig
			if file == "" {
				file = standalone.KubeconfigPath(dataDir)
			}
			config, err := clientcmd.BuildConfigFromFlags("", file)
			if err != nil {
				if kubeconfig != "" {
					return err
				}
				return standalone.NotRunning(dataDir)
			}
			return status.Print(cmd.Context(), config, cmd.OutOrStdout(), output)
		},
	}
	sub.Flags().StringVar(&dataDir, "data-dir", dataDir, "the instance's data directory")
	sub.Flags().StringVar(&kubeconfig, "kubeconfig", "", "another cluster's kubeconfig file instead")
	addOutputFlag(sub, &output)
	cmd.AddCommand(sub)
	return cmd
}
