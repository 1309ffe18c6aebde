package apiserver

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

var klogOnce sync.Once

// routeKlog sends what upstream's code logs to logger. klog is one per
// process, so the first Server's logger gets it all.
func routeKlog(logger *slog.Logger) {
	klogOnce.Do(func() {
		klog.SetSlogLogger(slog.New(quietHandler{logger.Handler()}))
		// The server's own requests may use deprecated APIs; nobody is to be told.
		rest.SetDefaultWarningHandler(rest.NoWarnings{})
	})
}

// quietHandler turns upstream's info messages, which are about its inner life,
// into debug messages.
type quietHandler struct{ slog.Handler }

func quiet(l slog.Level) slog.Level {
	if l < slog.LevelWarn {
		return min(l, slog.LevelDebug)
	}
	return l
}

// harmless are beginnings of messages that upstream calls errors and that
// every sound start or stop brings.
var harmless = []string{
	// The plugin that has no configuration says so.
	"The manifest file is empty",
	// Controllers of the server begin before its first namespaces are there, and try again.
	"Error while syncing ConfigMap",
	"Failed to ensure lease exists",
	// A server that stops before it has announced itself has nothing to take back.
	"Unable to remove endpoints from kubernetes service: StorageError: key not found",
	"Error removing old endpoints from kubernetes service: no API server IP addresses were listed in storage",
	// A server whose address changed, or whose store has just gone.
	"failed to sync with latest state",
	// The end of an exec, attach or port-forward: one side closes first.
	"Error on socket receive",
}

// harmlessErrors are parts of errors of which the same is true.
var harmlessErrors = []string{
	// A controller's cache has not seen its own last write yet; it tries again
	// (and is one of those that run in this process, when klog has no other
	// way to its log).
	"is not as new as written version",
}

// isHarmlessError looks at the error that a message is about.
func isHarmlessError(r slog.Record) bool {
	found := false
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok && a.Key == "err" {
			found = slices.ContainsFunc(harmlessErrors, func(p string) bool { return strings.Contains(err.Error(), p) })
			return false
		}
		return true
	})
	return found
}

func isHarmless(message string) bool {
	return slices.ContainsFunc(harmless, func(p string) bool { return strings.HasPrefix(message, p) })
}

func (h quietHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.Handler.Enabled(ctx, quiet(l))
}

func (h quietHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level = quiet(r.Level); isHarmless(r.Message) || r.Level >= slog.LevelWarn && isHarmlessError(r) {
		if r.Level = slog.LevelDebug; !h.Handler.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}

func (h quietHandler) WithAttrs(as []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(as)}
}

func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name)}
}
