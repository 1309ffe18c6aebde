// Package early makes `fairway echo` cheap. Importing it, for its effect
// alone, is all there is to do with it.
//
// The fairway program links all of Kubernetes, whose packages together spend
// about 0.1 s and 17 MB on their initialisation in every process, used or
// not. A hundred Pods of `fairway echo` would each pay that. So this package's
// own initialisation looks at the command line and, when it says echo and the
// small fairway-echo program lies in the same folder, becomes that program
// (execve) before the others have begun. Where fairway-echo is missing nothing
// happens, and `fairway echo` does the same work in the large program.
//
// It comes first because the language initialises packages in the order of
// their import paths, each once what it imports is ready (Go specification,
// "Program initialization"): "fairway.dev/…" sorts before "github.com/…" and
// "k8s.io/…", and this package imports nothing but os and syscall. Should that
// order ever change, it merely takes effect later.
package early

import (
	"os"
	"syscall"
)

func init() {
	if len(os.Args) < 2 || os.Args[1] != "echo" {
		return
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	dir := self[:len(self)-len(base(self))]
	small := dir + "fairway-echo"
	// On success this does not return; any error means the large program goes on.
	syscall.Exec(small, append([]string{small}, os.Args[2:]...), os.Environ())
}

// base is the last element of a path; path/filepath would come too late.
func base(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}
