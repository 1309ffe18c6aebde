package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"

	"fairway.dev/fairway/internal/standalone"
)

func newKubectlCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [arguments of kubectl]",
		Short: "kubectl, already pointed at the running instance",
		Long: `kubectl as Kubernetes ships it, pointed at the running instance. All that follows
is kubectl's own. The instance is that of FAIRWAY_DATA_DIR, or the default one;
--kubeconfig or KUBECONFIG point it elsewhere.`,
		Example: `  fairway kubectl get pods -o wide
  fairway kubectl apply -f examples/`,
		// Every argument belongs to kubectl, --help included.
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			// kubectl knows what to do on Ctrl-C; with main's handler in place the
			// first one would be lost on it.
			signal.Reset(os.Interrupt, syscall.SIGTERM)
			if os.Getenv("KUBECONFIG") == "" {
				os.Setenv("KUBECONFIG", standalone.KubeconfigPath(standalone.DefaultOptions().DataDir))
			}
			kubectl := cmd.NewDefaultKubectlCommandWithArgs(cmd.KubectlOptions{
				PluginHandler: cmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
				// Plugins and usage texts look at the name it was called by.
				Arguments: append([]string{"kubectl"}, args...),
				ConfigFlags: genericclioptions.NewConfigFlags(true).
					WithDeprecatedPasswordFlag().
					WithDiscoveryBurst(300).
					WithDiscoveryQPS(50),
				IOStreams: genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
			})
			kubectl.SetArgs(args)
			os.Args = append([]string{"kubectl"}, args...)
			if code := cli.Run(kubectl); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
}
