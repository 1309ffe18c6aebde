package apiserver_test

import (
	"os"
	"testing"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

// What this test binary is when it starts itself again.
const (
	roleVariable = "FAIRWAY_TEST_ROLE"
	roleKubectl  = "kubectl"  // the program kubectl
	roleServer   = "server"   // a server to be killed: see kill_test.go
	roleServices = "services" // another: see services_test.go
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case roleKubectl:
		os.Args[0] = "kubectl"
		os.Exit(cli.Run(cmd.NewDefaultKubectlCommand()))
	case roleServer:
		serverToKill()
	case roleServices:
		servicesToKill()
	default:
		os.Exit(m.Run())
	}
}
