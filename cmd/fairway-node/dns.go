package main

import (
	"runtime/debug"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"fairway.dev/fairway/internal/dns"
)

func newDNSCmd() *cobra.Command {
	var flags dns.Flags
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Cluster DNS: names for Services",
		Long: `Answer DNS questions: about the cluster's Services and Pods from the API, by the
Kubernetes DNS specification; about all other names by asking the machine's own
DNS servers, with a cache. It takes CoreDNS's place, or is a resolver on every node.`,
		Example: `  fairway-node dns                                        # in a Pod, see deploy/
  fairway-node dns --kubeconfig ~/.kube/config --listen 127.0.0.1:5353
  fairway-node dns --upstream 192.0.2.53 --stub-domain corp.example=10.1.1.1,10.1.1.2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.Options()
			if err != nil {
				return err
			}
			klog.SetSlogLogger(o.Logger.With("from", "client-go"))
			// Answers leave no garbage. Once the names are there memory counts for
			// more than the little that watches bring.
			o.OnSync = func() {
				debug.SetGCPercent(50)
				debug.FreeOSMemory()
			}
			d, err := dns.New(o)
			if err != nil {
				return err
			}
			return d.Run(cmd.Context())
		},
	}
	flags.Add(cmd.Flags())
	return cmd
}
