package main

import (
	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/echo"
	_ "fairway.dev/fairway/internal/echo/early" // lets the small fairway-echo program do the work
)

func newEchoCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "echo [flags] | echo get URL [flags]",
		Short: "A test server for Pods: who answers, who asked",
		Long: `A test server for Pods. It answers over HTTP (port 8080), TCP and UDP (port 9090)
with its Pod's name, node and address and the client's address, as one line of text
or as JSON, and can be slow, fail, or take its time to get ready: echo --help.

It takes its names from POD_NAME, POD_NAMESPACE and NODE_NAME. Over HTTP, /livez and
/healthz say that it lives, /readyz that it is ready; POST /control/unready,
/control/ready and /control/exit change that. On SIGTERM it goes on accepting for
--drain, then lets requests under way end.

echo get asks such a server and counts who answered: echo get --help.`,
		// The flags are those of the small fairway-echo program, which does the
		// work where it lies in the same folder.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if code := echo.Main(args, cmd.ErrOrStderr()); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
}
