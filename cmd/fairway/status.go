package main

import (
	"encoding/json"
	"os"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/console"
	"fairway.dev/fairway/internal/standalone"
)

func newStatusCmd() *cobra.Command {
	dataDir := standalone.DefaultOptions().DataDir
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show an instance: nodes, Pods, Services and how it is",
		Long: `Show the instance of a data directory. The exit status is 0 when it is up and all
its nodes are ready, 1 when something is not as it should be, and 3 when no
instance is running.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			st, err := standalone.ReadStatus(cmd.Context(), dataDir)
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(os.Stdout)
				e.SetIndent("", "  ")
				err = e.Encode(st)
			} else {
				st.Print(console.New(os.Stdout))
			}
			switch {
			case err != nil:
				return err
			case !st.Running:
				return exitCode(3)
			case !st.Healthy:
				return exitCode(1)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", dataDir, "the instance's data directory")
	addOutputFlag(cmd, &output)
	return cmd
}
