package lifecycle

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// report tells the API how the Pod is, if that has changed. It answers when to
// try again if that failed.
func (w *worker) report(ctx context.Context) time.Duration {
	status := w.status()
	base := w.sent
	if base == nil {
		base = &v1.PodStatus{}
	}
	if equality.Semantic.DeepEqual(base, status) {
		return forever
	}
	before, err := json.Marshal(v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: w.uid}, Status: *base})
	if err != nil {
		return forever
	}
	after, err := json.Marshal(v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: w.uid}, Status: *status})
	if err != nil {
		return forever
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, v1.Pod{})
	if err != nil || string(patch) == "{}" {
		return forever
	}
	patch = withUID(patch, w.uid)
	got, err := w.m.cfg.Client.CoreV1().Pods(w.namespace).Patch(ctx, w.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		if !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
			w.m.cfg.Logger.Warn("cannot report a Pod's status", "pod", w.name, "namespace", w.namespace, "err", err)
		}
		return time.Second
	}
	w.sent = &got.Status
	return forever
}

// withUID makes the patch fail for a later Pod of the same name.
func withUID(patch []byte, uid types.UID) []byte {
	var m map[string]any
	if json.Unmarshal(patch, &m) != nil {
		return patch
	}
	m["metadata"] = map[string]any{"uid": string(uid)}
	out, err := json.Marshal(m)
	if err != nil {
		return patch
	}
	return out
}

// status is how the Pod is now.
func (w *worker) status() *v1.PodStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	pod := w.next
	s := &v1.PodStatus{QOSClass: pod.Status.QOSClass, NominatedNodeName: pod.Status.NominatedNodeName, ObservedGeneration: pod.Generation,
		ResourceClaimStatuses: pod.Status.ResourceClaimStatuses, ExtendedResourceClaimStatus: pod.Status.ExtendedResourceClaimStatus}
	now := metav1.Now().Rfc3339Copy()
	s.StartTime = &now
	if w.sent != nil && w.sent.StartTime != nil {
		s.StartTime = w.sent.StartTime
	}
	for _, a := range w.m.cfg.HostIPs {
		s.HostIPs = append(s.HostIPs, v1.HostIP{IP: a.String()})
	}
	if len(s.HostIPs) > 0 {
		s.HostIP = s.HostIPs[0].IP
	}
	switch {
	case w.sb != nil || pod.Spec.HostNetwork:
		for _, a := range w.ipsLocked(pod) {
			s.PodIPs = append(s.PodIPs, v1.PodIP{IP: a.String()})
		}
	case w.sent != nil:
		s.PodIPs = w.sent.PodIPs // the last it had
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
	initialized, inits := true, false
	for _, c := range w.ctrs {
		cs := w.containerStatus(c)
		if c.ephemeral {
			s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, cs)
			continue
		}
		if c.init {
			inits = true
			s.InitContainerStatuses = append(s.InitContainerStatuses, cs)
			if c.sidecar {
				initialized = initialized && (cs.Started != nil && *cs.Started || w.mainsBegunLocked())
			} else {
				initialized = initialized && (cs.State.Terminated != nil && cs.State.Terminated.ExitCode == 0 || w.mainsBegunLocked())
			}
		} else {
			s.ContainerStatuses = append(s.ContainerStatuses, cs)
		}
	}
	for i := range s.ContainerStatuses {
		if wt := s.ContainerStatuses[i].State.Waiting; wt != nil && wt.Reason == "" {
			wt.Reason = "ContainerCreating"
			if inits && !initialized {
				wt.Reason = "PodInitializing"
			}
		}
	}
	for i := range s.EphemeralContainerStatuses {
		if wt := s.EphemeralContainerStatuses[i].State.Waiting; wt != nil && wt.Reason == "" {
			wt.Reason = "ContainerCreating"
			if inits {
				wt.Reason = "PodInitializing"
			}
		}
	}
	s.Phase, s.Reason, s.Message = w.phase(pod, s, initialized)
	w.conditions(pod, s, initialized)
	return s
}

func (w *worker) mainsBegunLocked() bool {
	return slices.ContainsFunc(w.ctrs, func(c *container) bool { return c.main() && c.id != "" })
}

func (w *worker) phase(pod *v1.Pod, s *v1.PodStatus, initialized bool) (v1.PodPhase, string, string) {
	if p := pod.Status.Phase; p == v1.PodFailed || p == v1.PodSucceeded {
		return p, pod.Status.Reason, pod.Status.Message
	}
	if w.podFailed != "" {
		return v1.PodFailed, w.podFailed, w.podMessage
	}
	if w.torn {
		for _, cs := range s.InitContainerStatuses {
			if i := slices.IndexFunc(w.ctrs, func(c *container) bool { return c.spec.Name == cs.Name }); w.ctrs[i].sidecar {
				continue
			}
			if t := cs.State.Terminated; t == nil || t.ExitCode != 0 {
				return v1.PodFailed, "", ""
			}
		}
		for _, cs := range s.ContainerStatuses {
			if t := cs.State.Terminated; t == nil || t.ExitCode != 0 {
				return v1.PodFailed, "", ""
			}
		}
		return v1.PodSucceeded, "", ""
	}
	if !initialized {
		return v1.PodPending, "", ""
	}
	for _, cs := range s.ContainerStatuses {
		if cs.State.Waiting != nil && cs.LastTerminationState.Terminated == nil {
			return v1.PodPending, "", ""
		}
	}
	return v1.PodRunning, "", ""
}

// conditions are the kubelet's; those of others stay as they are.
func (w *worker) conditions(pod *v1.Pod, s *v1.PodStatus, initialized bool) {
	done := s.Phase == v1.PodSucceeded
	ended := done || s.Phase == v1.PodFailed
	var unready []string
	for i, cs := range s.ContainerStatuses {
		if !cs.Ready {
			unready = append(unready, s.ContainerStatuses[i].Name)
		}
	}
	for i, cs := range s.InitContainerStatuses {
		if w.ctrs[i].sidecar && !cs.Ready {
			unready = append(unready, cs.Name)
		}
	}
	set := func(kind v1.PodConditionType, ok bool, reason, message string) {
		c := v1.PodCondition{Type: kind, Status: v1.ConditionFalse, ObservedGeneration: pod.Generation}
		if ok {
			c.Status = v1.ConditionTrue
		} else {
			c.Reason, c.Message = reason, message
		}
		c.LastTransitionTime = metav1.Now().Rfc3339Copy()
		if w.sent != nil {
			if i := slices.IndexFunc(w.sent.Conditions, func(o v1.PodCondition) bool { return o.Type == kind }); i >= 0 && w.sent.Conditions[i].Status == c.Status {
				c.LastTransitionTime = w.sent.Conditions[i].LastTransitionTime
			}
		}
		s.Conditions = append(s.Conditions, c)
	}
	set(v1.PodReadyToStartContainers, w.sb != nil, "", "")
	if done {
		set(v1.PodInitialized, true, "PodCompleted", "")
		s.Conditions[len(s.Conditions)-1].Reason = "PodCompleted"
	} else {
		set(v1.PodInitialized, initialized, "ContainersNotInitialized", "containers with incomplete status: "+list(incomplete(s)))
	}
	reason, message := "ContainersNotReady", "containers with unready status: "+list(unready)
	switch {
	case done:
		reason, message = "PodCompleted", ""
	case s.Phase == v1.PodFailed:
		reason, message = "PodFailed", ""
	}
	ready := len(unready) == 0 && !ended
	var gates []string
	for _, g := range pod.Spec.ReadinessGates {
		if !slices.ContainsFunc(pod.Status.Conditions, func(c v1.PodCondition) bool { return c.Type == g.ConditionType && c.Status == v1.ConditionTrue }) {
			gates = append(gates, string(g.ConditionType))
		}
	}
	if ready && len(gates) > 0 {
		set(v1.PodReady, false, "ReadinessGatesNotReady", "corresponding condition of pod readiness gate "+list(gates)+" is not \"True\".")
	} else {
		set(v1.PodReady, ready, reason, message)
	}
	set(v1.ContainersReady, ready, reason, message)
	// What others have said.
	for _, c := range pod.Status.Conditions {
		if !slices.ContainsFunc(s.Conditions, func(o v1.PodCondition) bool { return o.Type == c.Type }) {
			s.Conditions = append(s.Conditions, c)
		}
	}
	if !slices.ContainsFunc(s.Conditions, func(o v1.PodCondition) bool { return o.Type == v1.PodScheduled }) {
		set(v1.PodScheduled, true, "", "")
	}
}

func incomplete(s *v1.PodStatus) []string {
	var out []string
	for _, cs := range s.InitContainerStatuses {
		if cs.State.Terminated == nil || cs.State.Terminated.ExitCode != 0 {
			out = append(out, cs.Name)
		}
	}
	return out
}

func list(names []string) string {
	out := "["
	for i, n := range names {
		if i > 0 {
			out += " "
		}
		out += n
	}
	return out + "]"
}

// containerStatus is how a container is. The caller holds w.mu.
func (w *worker) containerStatus(c *container) v1.ContainerStatus {
	started := c.running && c.started
	cs := v1.ContainerStatus{Name: c.spec.Name, Image: c.spec.Image, ImageID: c.imageRef, ContainerID: c.id, RestartCount: c.restarts,
		Started: &started, Ready: c.running && c.ready}
	if c.init && !c.sidecar {
		cs.Ready = !c.running && c.exit != nil && c.exit.ExitCode == 0
		started = c.running // an init container has no startup probe
	}
	if c.ephemeral { // which has no probes, and no say in the Pod's readiness
		cs.Started, cs.Ready = nil, false
	}
	if c.last != nil {
		cs.LastTerminationState.Terminated = c.last
	}
	if c.id != "" && c.running && len(c.spec.Resources.Requests)+len(c.spec.Resources.Limits) > 0 {
		r := c.spec.Resources.DeepCopy()
		r.Claims = nil
		cs.Resources, cs.AllocatedResources = r, r.Requests
	}
	if c.user != nil && c.running {
		cs.User = &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: c.user.UID, GID: c.user.GID, SupplementalGroups: c.user.Groups}}
	}
	switch {
	case c.running:
		cs.State.Running = &v1.ContainerStateRunning{StartedAt: seconds(c.began)}
	case c.exit != nil && !(c.reason != "" && w.willRestart(c)):
		cs.State.Terminated = terminated(c, w.termMessage(c))
	default:
		cs.State.Waiting = &v1.ContainerStateWaiting{Reason: c.reason, Message: c.message}
		if c.exit != nil {
			cs.LastTerminationState.Terminated = terminated(c, w.termMessage(c))
		}
	}
	return cs
}

func (w *worker) willRestart(c *container) bool {
	return !w.torn && !c.doomed && w.restarts(c, c.exit.ExitCode)
}

// terminated is how the latest attempt ended.
func terminated(c *container, message string) *v1.ContainerStateTerminated {
	e := c.exit
	t := &v1.ContainerStateTerminated{ExitCode: int32(e.ExitCode), StartedAt: seconds(e.StartedAt), FinishedAt: seconds(e.FinishedAt),
		ContainerID: e.ID, Reason: "Error", Message: message}
	switch {
	case e.Unknown:
		t.Reason, t.Message = "ContainerStatusUnknown", "The container could not be located when the node came back"
	case e.OOMKilled:
		t.Reason = "OOMKilled"
	case e.ExitCode == 0:
		t.Reason = "Completed"
	case e.StartedAt.IsZero():
		t.Reason, t.Message = "StartError", c.message
	}
	return t
}

const maxTermMessage = 4096

// termMessage is what the container has left behind as its last word. The
// caller holds w.mu.
func (w *worker) termMessage(c *container) string {
	b, _ := os.ReadFile(w.path("termination-log-" + c.spec.Name))
	if len(b) == 0 && c.spec.TerminationMessagePolicy == v1.TerminationMessageFallbackToLogsOnError && c.exit != nil && c.exit.ExitCode != 0 && len(c.logs) > 0 {
		b = tailOf(c.logs[len(c.logs)-1], 80, 2048)
	}
	if len(b) > maxTermMessage {
		b = b[len(b)-maxTermMessage:]
	}
	return string(b)
}

// seconds drops what the API does not keep.
func seconds(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.NewTime(t).Rfc3339Copy()
}
