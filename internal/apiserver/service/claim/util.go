package claim

import (
	"context"
	"errors"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/apis/core"
)

// takeID claims id for o, and says taken if somebody holds it.
func takeID(ctx context.Context, b *Book, id string, o Owner, dryRun bool, taken string) error {
	if dryRun {
		_, found, err := b.Get(ctx, id)
		if err == nil && found {
			err = &takenError{taken}
		}
		return err
	}
	err := b.Claim(ctx, id, o)
	if errors.Is(err, ErrTaken) {
		return &takenError{taken}
	}
	return err
}

// takenError is ErrTaken in the words of what was asked for.
type takenError struct{ msg string }

func (e *takenError) Error() string        { return e.msg }
func (e *takenError) Is(target error) bool { return target == ErrTaken }

func splitName(s string) (namespace, name string) {
	namespace, name, _ = strings.Cut(s, "/")
	return
}

// portList is the list kind that RangeAllocation lacks, for reading port claims.
type portList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []core.RangeAllocation
}

func (l *portList) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

func (l *portList) DeepCopyObject() runtime.Object {
	out := &portList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy(), Items: make([]core.RangeAllocation, len(l.Items))}
	for i := range l.Items {
		l.Items[i].DeepCopyInto(&out.Items[i])
	}
	return out
}
