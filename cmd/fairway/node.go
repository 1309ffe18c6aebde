package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"fairway.dev/fairway/internal/node"
	"fairway.dev/fairway/internal/standalone"
)

func newNodeCmd() *cobra.Command {
	dataDir := standalone.DefaultOptions().DataDir
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Try what happens when a node fails",
		Long: `Power a simulated node off and on, or cut its network cable. The state is an
annotation of the Node (fairway.dev/power) and survives a restart of the instance.`,
		Example: `  fairway node stop node-2     # its Pods die with it and are made anew elsewhere
  fairway node cut node-2      # it goes on, but nobody reaches it
  fairway node start node-2`,
	}
	cmd.PersistentFlags().StringVar(&dataDir, "data-dir", dataDir, "the instance's data directory")
	for _, sub := range []struct {
		name, short, done string
		power             node.Power
	}{
		{"stop", "Power a node off", "is powered off", node.Off},
		{"start", "Power a node on, its cable plugged in", "is powered on", node.On},
		{"cut", "Cut a node's network cable", "has its cable cut", node.Cut},
	} {
		cmd.AddCommand(&cobra.Command{
			Use:   sub.name + " NAME",
			Short: sub.short,
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				config, err := clientcmd.BuildConfigFromFlags("", standalone.KubeconfigPath(dataDir))
				if err != nil {
					return standalone.NotRunning(dataDir)
				}
				client, err := kubernetes.NewForConfig(config)
				if err != nil {
					return err
				}
				if err := node.SetPower(cmd.Context(), client, args[0], sub.power); err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", args[0], sub.done)
				return err
			},
		})
	}
	return cmd
}
