package main

import (
	"os"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/console"
	"fairway.dev/fairway/internal/standalone"
)

func newDownCmd() *cobra.Command {
	dataDir := standalone.DefaultOptions().DataDir
	var purge bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop an instance and remove all it made on the machine",
		Long: `Stop the instance of a data directory, its Pods included, and remove the network
namespaces, links and rules it made, also those of one that was killed. Its state
stays in the data directory for the next up, unless --purge removes it.`,
		Example: `  fairway down
  fairway down --purge                 # and forget everything`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return standalone.Down(cmd.Context(), dataDir, purge, console.New(os.Stdout))
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", dataDir, "the instance's data directory")
	cmd.Flags().BoolVar(&purge, "purge", false, "also remove the data directory")
	return cmd
}
