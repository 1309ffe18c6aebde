package standalone

import (
	"strings"
	"testing"
)

func TestOptionsComplete(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Options)
		want   string // part of the error; empty for none
	}{
		{"defaults", func(o *Options) {}, ""},
		{"IPv4 only", func(o *Options) {
			o.ServiceCIDRs, o.PodCIDRs, o.NodeCIDRs = o.ServiceCIDRs[:1], o.PodCIDRs[:1], o.NodeCIDRs[:1]
		}, ""},
		{"IPv6 only", func(o *Options) {
			o.ServiceCIDRs, o.PodCIDRs, o.NodeCIDRs = o.ServiceCIDRs[1:], o.PodCIDRs[1:], o.NodeCIDRs[1:]
		}, ""},
		{"host", func(o *Options) { o.Host = true }, ""},
		{"no nodes", func(o *Options) { o.Nodes = 0 }, "--nodes: 0 is out of range, give 1 to 100"},
		{"host and nodes", func(o *Options) { o.Host = true; o.Nodes = 3 }, "--host: makes this machine the one node"},
		{"port", func(o *Options) { o.APIPort = 70000 }, "--api-port: 70000 is not a port"},
		{"not a prefix", func(o *Options) { o.PodCIDRs = []string{"10.244.0.0"} }, `--pod-cidr: "10.244.0.0" is not a range`},
		{"host bits", func(o *Options) { o.PodCIDRs = []string{"10.244.1.0/16"} }, "did you mean 10.244.0.0/16?"},
		{"one family twice", func(o *Options) { o.ServiceCIDRs = []string{"10.96.0.0/16", "10.97.0.0/16"} }, "of the same family"},
		{"three ranges", func(o *Options) { o.ServiceCIDRs = []string{"10.96.0.0/16", "fd00::/112", "10.97.0.0/16"} }, "one of each family"},
		{"small Services", func(o *Options) { o.ServiceCIDRs = []string{"10.96.0.0/30"} }, "--service-cidr: 10.96.0.0/30 is too small"},
		{"small Pods", func(o *Options) { o.PodCIDRs = []string{"10.244.0.0/23"}; o.Nodes = 3 }, "no room for a /24 for each of 3 nodes"},
		{"small nodes", func(o *Options) { o.NodeCIDRs = []string{"172.30.0.0/28", "fd00:172:30::/64"}; o.Nodes = 10 }, "no room for 10 nodes"},
		{"overlap", func(o *Options) { o.ServiceCIDRs = []string{"10.244.128.0/20"} }, "overlaps"},
		{"ports", func(o *Options) { o.NodePortRange = "40000-30000" }, `--node-port-range: "40000-30000" is not a range of ports`},
		{"lb range", func(o *Options) { o.LBAddresses = []string{"172.30.0.9-172.30.0.1"} }, "--lb-addresses"},
		{"upstream", func(o *Options) { o.DNSUpstreams = []string{"dns.example"} }, "--dns-upstream"},
		{"dual Pods on single nodes", func(o *Options) { o.NodeCIDRs = o.NodeCIDRs[:1] }, "give a range of each family"},
		{"mixed families", func(o *Options) {
			o.NodeCIDRs, o.PodCIDRs, o.ServiceCIDRs = o.NodeCIDRs[:1], o.PodCIDRs[:1], o.ServiceCIDRs[1:]
		}, "of another family"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := DefaultOptions()
			tc.change(&o)
			_, err := o.Complete()
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	o := DefaultOptions()
	o.Nodes, o.APIPort = -1, 0
	_, err := o.Complete()
	if err == nil || !strings.Contains(err.Error(), "--nodes") || !strings.Contains(err.Error(), "--api-port") {
		t.Errorf("got %v, want both faults", err)
	}
}

func TestParseRange(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.10-192.0.2.20": "192.0.2.10 192.0.2.20",
		"192.0.2.16/28":         "192.0.2.16 192.0.2.31",
		"fd00::c8 - fd00::fa":   "fd00::c8 fd00::fa",
		"fd00::/126":            "fd00:: fd00::3",
	} {
		a, b, err := ParseRange(in)
		if got := a.String() + " " + b.String(); err != nil || got != want {
			t.Errorf("ParseRange(%q) = %s, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "192.0.2.1", "192.0.2.9-192.0.2.1", "192.0.2.1-fd00::1", "a-b"} {
		if _, _, err := ParseRange(in); err == nil {
			t.Errorf("ParseRange(%q) succeeded", in)
		}
	}
}

func TestLockIsExclusive(t *testing.T) {
	dir := t.TempDir()
	l, err := lockDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	// A lock belongs to an open file, so that the same process conflicts too.
	if _, err := lockDataDir(dir); err == nil || !strings.Contains(err.Error(), "fairway down") {
		t.Errorf("second lock: got %v, want a refusal that says how to stop the holder", err)
	}
	if holder(dir) == 0 {
		t.Error("holder: got none while it is held")
	}
	l.release()
	if pid := holder(dir); pid != 0 {
		t.Errorf("holder: got %d after release, want none", pid)
	}
	if l, err = lockDataDir(dir); err != nil {
		t.Fatalf("lock after release: %v", err)
	}
	l.release()
}
