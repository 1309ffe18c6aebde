package main

import "time"

// program is something that programs Services into the kernel.
type program struct {
	name string
	path string
	args func(kubeconfig, profile string) []string
	// sign is in the line of the log that says that the table is complete; if
	// it is empty, the metrics tell.
	sign string
	// elements is how many the kernel holds then at least, in all sets and maps.
	elements func(size) int
	// pace is how long after one change the next one comes, so that a least
	// time between two syncs delays none.
	pace time.Duration
}

// common are flags that both programs have. The machine's own limits for
// connection tracking are not ours to change.
func common(kubeconfig string) []string {
	return []string{"--kubeconfig", kubeconfig, "--hostname-override", nodeName, "--cluster-cidr", "100.0.0.0/8", "--nodeport-addresses", "primary",
		"--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"}
}

func fairway(path string) program {
	return program{
		name: "fairway", path: path, sign: "msg=programmed ", pace: 2 * time.Millisecond,
		elements: func(s size) int { return s.services * s.endpoints },
		args: func(kubeconfig, profile string) []string {
			args := append([]string{"proxy"}, common(kubeconfig)...)
			if profile != "" {
				args = append(args, "--startup-profile", profile)
			}
			return args
		},
	}
}

// kubeProxy is upstream's, in nftables mode and with its defaults. It has a
// chain for each Service and endpoint, and an element for each Service only.
func kubeProxy(path string) program {
	return program{
		name: "kube-proxy", path: path, pace: 1100 * time.Millisecond,
		elements: func(s size) int { return s.services },
		args: func(kubeconfig, _ string) []string {
			return append([]string{"--proxy-mode", "nftables"}, common(kubeconfig)...)
		},
	}
}
