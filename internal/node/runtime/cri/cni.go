package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// marker is in every file written here, so that it can be told from others'.
const marker = "Made by Fairway"

// plugin is a CNI plugin (github.com/containernetworking/cni, SPEC.md) that
// leaves the namespace as it is and says that all is well. It also stands in
// for "loopback", which containerd calls for every sandbox. Where joinDir has
// a file for the Pod, it puts the network namespace that the file names in the
// place of the one that the daemon has made (see join.go).
const plugin = `#!/bin/sh
# ` + marker + `, removed by "fairway down". It connects nothing: Fairway connects its
# Pods itself once the container runtime has made their network namespace.
case "$CNI_COMMAND" in
VERSION)
	echo '{"cniVersion":"0.4.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0"]}' ;;
ADD)
	cat >/dev/null
	uid=${CNI_ARGS##*K8S_POD_UID=}
	join=` + joinDir + `/${uid%%;*}
	if [ "$CNI_IFNAME" != lo ] && [ -f "$join" ]; then
		read -r ns <"$join"
		if ! why=$( (umount -l "$CNI_NETNS" && mount --bind "$ns" "$CNI_NETNS") 2>&1 ); then
			echo '{"cniVersion":"0.4.0","code":100,"msg":"cannot join network namespace '"$ns"': '"$(printf %s "$why" | tr '"\\\n' "'/ ")"'"}'
			exit 1
		fi
	fi
	echo '{"cniVersion":"0.4.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"version":"4","address":"169.254.1.2/32","interface":0}],"dns":{}}' ;;
*)
	cat >/dev/null ;;
esac
`

const conflist = `{
  "cniVersion": "0.4.0",
  "name": "fairway",
  "plugins": [{"type": "fairway", "comment": "` + marker + `, removed by fairway down"}]
}
`

const confFile = "10-fairway.conflist"

// cniDirs asks the daemon where it looks for plugins and configurations.
func (r *Runtime) cniDirs(ctx context.Context) (bin, conf string, ready bool, why string, err error) {
	st, err := r.rt.Status(ctx, true)
	if err != nil {
		return "", "", false, "", fmt.Errorf("%s: %w", r.name, err)
	}
	for _, c := range st.GetStatus().GetConditions() {
		if c.Type == api.NetworkReady {
			ready, why = c.Status, c.Message
		}
	}
	bin, conf = "/opt/cni/bin", "/etc/cni/net.d"
	var cfg struct {
		CNI struct {
			BinDir  string   `json:"binDir"`
			BinDirs []string `json:"binDirs"`
			ConfDir string   `json:"confDir"`
		} `json:"cni"`
	}
	if json.Unmarshal([]byte(st.Info["config"]), &cfg) == nil {
		if cfg.CNI.BinDir != "" {
			bin = cfg.CNI.BinDir
		} else if len(cfg.CNI.BinDirs) > 0 {
			bin = cfg.CNI.BinDirs[0]
		}
		if cfg.CNI.ConfDir != "" {
			conf = cfg.CNI.ConfDir
		}
	}
	return bin, conf, ready, why, nil
}

// ensureCNI gives the daemon our plugin, unless it already serves a network of
// somebody else's: that is not ours to change.
func (r *Runtime) ensureCNI(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	bin, conf, ready, why, err := r.cniDirs(ctx)
	if err != nil {
		return err
	}
	if other := foreign(conf); other != "" {
		return fmt.Errorf("%s has a Pod network of another's (%s), which Fairway does not touch: take that file away, or give Fairway a %s of its own (its socket is an option)",
			r.name, filepath.Join(conf, other), r.name)
	}
	files := map[string]string{filepath.Join(bin, "fairway"): plugin, filepath.Join(conf, confFile): conflist}
	if _, err := os.Stat(filepath.Join(bin, "loopback")); errors.Is(err, fs.ErrNotExist) {
		files[filepath.Join(bin, "loopback")] = plugin
	}
	changed := false
	for _, path := range slices.Backward(sorted(files)) { // the configuration last
		if b, err := os.ReadFile(path); err == nil && string(b) == files[path] {
			continue
		}
		changed = true
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(files[path]), 0o755); err != nil {
			return fmt.Errorf("give %s a network plugin: %w", r.name, err)
		}
	}
	for deadline := time.Now().Add(20 * time.Second); !ready || changed; {
		changed = false
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not take the network configuration %s: %s; restart it", r.name, filepath.Join(conf, confFile), why)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if _, _, ready, why, err = r.cniDirs(ctx); err != nil {
			return err
		}
	}
	return nil
}

func sorted(files map[string]string) []string {
	var out []string
	for p := range files {
		out = append(out, p)
	}
	slices.Sort(out) // …/etc before …/opt and …/usr
	return out
}

// foreign names a configuration that is not ours.
func foreign(dir string) string {
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		ext := filepath.Ext(e.Name())
		if ext != ".conf" && ext != ".conflist" && ext != ".json" {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil && !strings.Contains(string(b), marker) {
			return e.Name()
		}
	}
	return ""
}

func (r *Runtime) removeCNI(ctx context.Context) error {
	bin, conf, _, _, err := r.cniDirs(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range []string{filepath.Join(conf, confFile), filepath.Join(bin, "fairway"), filepath.Join(bin, "loopback")} {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(marker)) {
			errs = append(errs, os.Remove(path))
		}
	}
	for _, dir := range []string{conf, bin, joinDir} {
		os.Remove(dir)               //nolint:errcheck // only if it is empty
		os.Remove(filepath.Dir(dir)) //nolint:errcheck
	}
	return errors.Join(errs...)
}
