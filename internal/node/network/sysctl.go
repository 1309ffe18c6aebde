package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"fairway.dev/fairway/internal/netns"
)

// sysctls changes values below /proc/sys in the machine's namespace and
// remembers in a file what they were, so that a later process can put them
// back even if this one is killed.
type sysctls struct {
	file string
	was  map[string]string
}

func openSysctls(stateDir string) (*sysctls, error) {
	s := &sysctls{file: filepath.Join(stateDir, "sysctls.json"), was: map[string]string{}}
	data, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s.was)
	}
	if err != nil {
		return nil, fmt.Errorf("read sysctls as they were: %w", err)
	}
	return s, nil
}

// set writes a value if it differs, having recorded the one before. The calling
// thread must be in the namespace meant.
func (s *sysctls) set(key, value string) error {
	old, err := readSysctl(key)
	if err != nil {
		return err
	}
	if old == value {
		return nil
	}
	if _, known := s.was[key]; !known {
		s.was[key] = old
		if err := s.save(); err != nil {
			return err
		}
	}
	return writeSysctl(key, value)
}

func (s *sysctls) save() error {
	data, err := json.MarshalIndent(s.was, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(s.file, data, 0o600)
}

// restore puts every value back. Keys that have gone (with their link) are
// passed over.
func (s *sysctls) restore() error {
	var errs []error
	// The "all" keys write through to each link: they go first.
	for _, pass := range []bool{true, false} {
		for key, value := range s.was {
			if strings.Contains(key, "/conf/all/") != pass {
				continue
			}
			if err := writeSysctl(key, value); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	if err := os.Remove(s.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + key)
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

// allowIPv6 lets a link of ours have IPv6 addresses on a machine that keeps
// them off its links (disable_ipv6); the others' stay as they are. A kernel
// without IPv6 is no error.
func allowIPv6(ns *netns.NS, link string) error {
	key := "net/ipv6/conf/" + link + "/disable_ipv6"
	return ns.Do(func() error {
		if v, err := readSysctl(key); err != nil || v == "0" {
			return nil
		}
		return writeSysctl(key, "0")
	})
}
