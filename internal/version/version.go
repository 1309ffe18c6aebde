// Package version says which build of Fairway is running.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version and Commit are set by the linker (see the Makefile). A build without
// it, such as `go install`, falls back on what the Go toolchain recorded.
var (
	Version = ""
	Commit  = ""
)

// Kubernetes is the release whose API and behaviour this build follows: the
// version of the k8s.io modules in go.mod.
const Kubernetes = "v1.37.2"

// Info describes a build. Its JSON form is what `fairway version -o json` prints.
type Info struct {
	Version    string `json:"version"`
	Commit     string `json:"commit,omitempty"`
	Kubernetes string `json:"kubernetes"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
}

// Get returns the running build.
func Get() Info {
	info := Info{
		Version:    Version,
		Commit:     Commit,
		Kubernetes: Kubernetes,
		Go:         runtime.Version(),
		Platform:   runtime.GOOS + "/" + runtime.GOARCH,
	}
	if info.Version == "" {
		info.Version = "devel"
		if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
			info.Version = bi.Main.Version
		}
	}
	return info
}

// String is one line for people.
func (i Info) String() string {
	s := "fairway " + i.Version
	if i.Commit != "" {
		s += " (" + i.Commit + ")"
	}
	return fmt.Sprintf("%s, Kubernetes API %s, %s, %s", s, i.Kubernetes, i.Go, i.Platform)
}
