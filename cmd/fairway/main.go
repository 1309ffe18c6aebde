// Command fairway runs Kubernetes Services on one machine: `fairway up`.
package main

import (
	"context"
	"errors"
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

	err := newRootCmd().ExecuteContext(ctx)
	if err == nil {
		return
	}
	var code exitCode
	if errors.As(err, &code) {
		os.Exit(int(code))
	}
	fmt.Fprintln(os.Stderr, "fairway:", err)
	os.Exit(1)
}

// exitCode ends the program with a status, all that is to be said having been
// said.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "fairway",
		Short: "Kubernetes Services, on one machine, with nothing else installed",
		Long: `Fairway runs Kubernetes Services on one machine: an API that kubectl talks to,
nodes that run Pods, the data plane, DNS and a load balancer, in one binary.`,
		Example: `  fairway up --nodes 3 --detach     # start three nodes in the background
  fairway kubectl apply -f web.yaml # or any kubectl, with the kubeconfig that up names
  fairway status
  fairway down`,
		Version:       version.Get().Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate(version.Get().String() + "\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		newUpCmd(),
		newDownCmd(),
		newStatusCmd(),
		newNodeCmd(),
		newLBCmd(),
		newEchoCmd(),
		newKubectlCmd(),
		newVersionCmd(),
	)
	return root
}
