package nft

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

func TestZZList(t *testing.T) {
	l := newLab(t)
	f := clusterIP(state.TCP, "10.96.0.10:80", 1, 2, 3)
	g := clusterIP(state.TCP, "[fd00:96::10]:80", 1, 2, 3)
	g.Affinity = time.Hour
	h := clusterIP(state.TCP, "10.96.0.11:80", 1, 2, 3)
	h.Affinity = time.Hour
	n := &state.Frontend{Key: key(state.TCP, "0.0.0.0:30080"), Backends: podBackends(h.Key, 1), Inside: true, InsideBackends: podBackends(h.Key, 1, 2, 3), Empty: state.Drop}
	r := &state.Frontend{Key: key(state.TCP, "192.0.2.200:80"), Backends: podBackends(h.Key, 1), Restricted: true, Sources: prefixes("192.0.2.0/24", "10.0.0.0/8"), Masquerade: state.MasqueradeAlways}
	l.replace(f, g, h, n, r)
	cmd := os.Getenv("NFTCMD")
	if cmd == "" {
		cmd = "nft list ruleset"
	}
	l.node.NS.Do(func() error {
		out, err := exec.Command("sh", "-c", cmd).CombinedOutput()
		t.Logf("%s\n%v", out, err)
		return nil
	})
}
