package main

import (
	"os"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/console"
	"fairway.dev/fairway/internal/standalone"
)

func newUpCmd() *cobra.Command {
	o := standalone.DefaultOptions()
	var detach bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start an instance: API, nodes, data plane, DNS, load balancer",
		Long: `Start an instance and keep it running until Ctrl-C, or in the background with
--detach. Its state is in the data directory and survives a restart. Needs root:
nodes and Pods are network namespaces.`,
		Example: `  fairway up                           # one node, in the foreground
  fairway up --nodes 3 --detach        # three nodes, in the background
  fairway up --host                    # this machine itself is the node
  fairway up --data-dir /tmp/two --api-port 7443 \
    --node-cidr 172.31.0.0/24 --pod-cidr 10.245.0.0/16 --service-cidr 10.97.0.0/16   # a second one beside it`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := console.New(os.Stdout)
			progress := standalone.NewProgress(out)
			if detach && !progress.Detached() {
				return standalone.UpDetached(os.Args[1:], o, out)
			}
			return standalone.Up(cmd.Context(), o, progress)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.DataDir, "data-dir", o.DataDir, "where the instance keeps its state (default also from FAIRWAY_DATA_DIR)")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "where to write the administrator's kubeconfig (default DATA-DIR/kubeconfig)")
	f.IntVar(&o.Nodes, "nodes", o.Nodes, "how many nodes to simulate, each in a network namespace of its own")
	f.StringSliceVar(&o.Zones, "zones", nil, "zones to spread the nodes over, e.g. a,b,c")
	f.BoolVar(&o.Host, "host", false, "make this machine itself the one node")
	f.BoolVarP(&detach, "detach", "d", false, "return when ready and leave it running in the background")
	f.IntVar(&o.APIPort, "api-port", o.APIPort, "port of the API")
	f.StringSliceVar(&o.ServiceCIDRs, "service-cidr", o.ServiceCIDRs, "range of Service addresses, one a family")
	f.StringSliceVar(&o.PodCIDRs, "pod-cidr", o.PodCIDRs, "range of Pod addresses, one a family")
	f.StringSliceVar(&o.NodeCIDRs, "node-cidr", o.NodeCIDRs, "range of node addresses, one a family")
	f.StringVar(&o.NodePortRange, "node-port-range", o.NodePortRange, "ports that NodePort Services may have")
	f.StringSliceVar(&o.LBAddresses, "lb-addresses", nil, "addresses for LoadBalancer Services, ranges or prefixes (default: a part of --node-cidr)")
	f.StringSliceVar(&o.EtcdServers, "etcd-servers", nil, "use this etcd instead of the built-in one, e.g. http://127.0.0.1:2379")
	f.StringSliceVar(&o.DNSUpstreams, "dns-upstream", nil, "resolvers for names outside the cluster (default: the machine's)")
	f.StringVar(&o.ClusterDomain, "cluster-domain", o.ClusterDomain, "domain that Service names end with")
	f.BoolVarP(&o.Verbose, "verbose", "v", false, "log more, and in the foreground to standard error too")
	return cmd
}
