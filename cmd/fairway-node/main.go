// Command fairway-node has the parts of Fairway that run beside a real
// Kubernetes API server.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/version"
)

func main() {
	// The first signal asks every part to stop; a second one, with the handler
	// gone, ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if err := newRootCmd().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fairway-node:", err)
		os.Exit(1)
	}
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:           "fairway-node",
		Short:         "The parts of Fairway for the nodes of a Kubernetes cluster",
		Version:       version.Get().Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newVersionCmd())
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		newDNSCmd(),
		newLBCmd(),
		newProxyCmd(),
	)
	return root
}
