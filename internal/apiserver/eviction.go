package apiserver

import (
	"strconv"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/kubernetes/plugin/pkg/admission/defaulttolerationseconds"
)

// setEvictAfter sets the tolerationSeconds that new Pods get for a Node that
// is not ready or unreachable. Upstream keeps it in variables of the process,
// to be had by flags only; servers of one process share it.
func setEvictAfter(d time.Duration) error {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	defaulttolerationseconds.RegisterFlags(flags)
	seconds := strconv.FormatInt(int64(d/time.Second), 10)
	for _, name := range []string{"default-not-ready-toleration-seconds", "default-unreachable-toleration-seconds"} {
		if err := flags.Set(name, seconds); err != nil {
			return err
		}
	}
	return nil
}
