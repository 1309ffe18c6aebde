package node

import (
	"context"
	"encoding/json"
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// AnnotationPower on a Node says whether it has power: "on" (or absent), "off",
// or "cut" for a node that runs without its cable.
const AnnotationPower = "fairway.dev/power"

// Power is what AnnotationPower says.
type Power string

// The states a node can be put in.
const (
	On  Power = "on"
	Off Power = "off"
	Cut Power = "cut"
)

func powerOf(n *v1.Node) Power {
	switch p := Power(n.Annotations[AnnotationPower]); p {
	case Off, Cut:
		return p
	}
	return On
}

// SetPower asks for a node to be put in a state. It returns when the wish is
// stored; the running instance follows at once.
func SetPower(ctx context.Context, client kubernetes.Interface, name string, p Power) error {
	var value any = string(p)
	if p == On {
		value = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{AnnotationPower: value}}})
	if err != nil {
		return err
	}
	if _, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	return nil
}
