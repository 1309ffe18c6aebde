// Package etcdlog keeps the etcd client inside Kubernetes' API server from
// writing to stderr whenever it tries a request again, which every stop brings
// about. That client makes its logger when the program's packages are initialised, from an
// environment variable; so this package, which depends on nothing and is
// therefore initialised earlier (Go initialises packages that are ready in the order of their
// import paths), sets that variable, unless the user has.
package etcdlog

import "os"

const variable = "ETCD_CLIENT_DEBUG"

var set = func() bool {
	if _, ok := os.LookupEnv(variable); ok {
		return false
	}
	return os.Setenv(variable, "error") == nil
}()

// Clear takes the variable away again, so that child processes do not inherit it.
func Clear() {
	if set {
		os.Unsetenv(variable)
	}
}
