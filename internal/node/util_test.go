package node_test

import (
	"context"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/util/intstr"
)

func portOf(n int) intstr.IntOrString { return intstr.FromInt32(int32(n)) }

// until is a writer that tells when it has seen a text.
type until struct {
	want  string
	found context.CancelFunc

	mu  sync.Mutex
	got strings.Builder
}

func (u *until) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.got.Write(p)
	if strings.Contains(u.got.String(), u.want) {
		u.found()
	}
	return len(p), nil
}

func (u *until) text() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.got.String()
}

func (u *until) ok() bool { return strings.Contains(u.text(), u.want) }
