package standalone

import (
	"net/netip"
	"slices"
	"testing"
)

func TestDefaultLBRanges(t *testing.T) {
	for in, want := range map[string]string{
		"172.30.0.0/24":    "172.30.0.200-172.30.0.250",
		"172.30.0.0/16":    "172.30.0.200-172.30.0.250",
		"172.30.0.128/26":  "172.30.0.176-172.30.0.190",
		"fd00:172:30::/64": "fd00:172:30::c8-fd00:172:30::fa",
	} {
		got := defaultLBRanges([]netip.Prefix{netip.MustParsePrefix(in)})
		if !slices.Equal(got, []string{want}) {
			t.Errorf("%s: got %v, want %s", in, got, want)
		}
		if _, _, err := ParseRange(want); err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestNth(t *testing.T) {
	for _, tc := range []struct {
		prefix string
		n      int
		want   string
	}{
		{"10.0.0.0/8", 0, "10.0.0.0"},
		{"10.0.0.0/8", 300, "10.0.1.44"},
		{"10.0.255.0/24", 255, "10.0.255.255"},
		{"fd00::/64", 65536, "fd00::1:0"},
	} {
		if got := nth(netip.MustParsePrefix(tc.prefix), tc.n).String(); got != tc.want {
			t.Errorf("nth(%s, %d) = %s, want %s", tc.prefix, tc.n, got, tc.want)
		}
	}
}
