package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crilogs "k8s.io/cri-client/pkg/logs"

	"fairway.dev/fairway/internal/node/lifecycle"
)

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	opts, err := parseLogOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	namespace, pod, name := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	h, err := s.Pods.Container(namespace, pod, name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	path := h.Log
	if opts.Previous {
		path = h.Previous
		if path == "" {
			http.Error(w, `previous terminated container "`+name+`" in pod "`+pod+`" not found`, http.StatusBadRequest)
			return
		}
	}
	if path == "" {
		http.Error(w, `container "`+name+`" in pod "`+pod+`" is waiting to start`, http.StatusBadRequest)
		return
	}
	out := &flusher{w: w}
	stdout, stderr := io.Writer(out), io.Writer(out)
	if opts.Stream != nil {
		switch *opts.Stream {
		case v1.LogStreamStdout:
			stderr = nil
		case v1.LogStreamStderr:
			stdout = nil
		}
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	out.flush()
	id := h.ID
	if opts.Previous {
		id = ""
	}
	alive := &aliveness{pods: s.Pods, namespace: namespace, pod: pod, container: name}
	err = crilogs.ReadLogs(r.Context(), path, id, logOptions(opts), alive, stdout, stderr)
	if err != nil && r.Context().Err() == nil {
		io.WriteString(out, "failed to read the log: "+err.Error()+"\n") //nolint:errcheck
	}
}

func logOptions(o *v1.PodLogOptions) *crilogs.LogOptions {
	out := &crilogs.LogOptions{TailLines: o.TailLines, LimitBytes: o.LimitBytes, Follow: o.Follow, Timestamp: o.Timestamps}
	switch {
	case o.SinceTime != nil:
		out.Since = o.SinceTime.Time
	case o.SinceSeconds != nil:
		out.Since = time.Now().Add(-time.Duration(*o.SinceSeconds) * time.Second)
	}
	return out
}

// parseLogOptions reads the query of a request for a log: the fields of
// v1.PodLogOptions by their JSON names.
func parseLogOptions(q url.Values) (*v1.PodLogOptions, error) {
	o := &v1.PodLogOptions{}
	var errs []error
	number := func(name string) *int64 {
		s := q.Get(name)
		if s == "" {
			return nil
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			errs = append(errs, fmt.Errorf("%s: %q is not a number from 0", name, s))
			return nil
		}
		return &n
	}
	flag := func(name string) bool {
		s := q.Get(name)
		b, err := strconv.ParseBool(s)
		if s != "" && err != nil {
			errs = append(errs, fmt.Errorf("%s: %q is neither true nor false", name, s))
		}
		return b
	}
	o.Follow, o.Previous, o.Timestamps = flag("follow"), flag("previous"), flag("timestamps")
	o.SinceSeconds, o.LimitBytes, o.TailLines = number("sinceSeconds"), number("limitBytes"), number("tailLines")
	if s := q.Get("sinceTime"); s != "" {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("sinceTime: %w", err))
		}
		since := metav1.NewTime(t)
		o.SinceTime = &since
	}
	if s := q.Get("stream"); s != "" {
		o.Stream = &s
	}
	return o, errors.Join(errs...)
}

// aliveness answers the one question that following a log asks.
type aliveness struct {
	internalapi.RuntimeService
	pods                      *lifecycle.Manager
	namespace, pod, container string
}

func (a *aliveness) ContainerStatus(_ context.Context, id string, _ bool) (*runtimeapi.ContainerStatusResponse, error) {
	state := runtimeapi.ContainerState_CONTAINER_EXITED
	if h, err := a.pods.Container(a.namespace, a.pod, a.container); err == nil && h.ID == id && h.Running {
		state = runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{Id: id, State: state}}, nil
}

// flusher sends each piece at once.
type flusher struct{ w http.ResponseWriter }

func (f *flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.flush()
	return n, err
}

func (f *flusher) flush() {
	if fl, ok := f.w.(http.Flusher); ok {
		fl.Flush()
	}
}
