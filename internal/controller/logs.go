package controller

import (
	"context"
	"log/slog"
	"strings"
)

// lower is a slog handler that shows what upstream's controllers call
// information ("Starting …", "Finished syncing …") at the level of debugging.
// Their errors stay errors, but for one: that a cache has not seen the
// controller's own last write yet, which is everyday and tried again.
type lower struct{ slog.Handler }

func (l lower) level(level slog.Level) slog.Level {
	if level <= slog.LevelInfo {
		return level + slog.LevelDebug - slog.LevelInfo
	}
	return level
}

func (l lower) Enabled(ctx context.Context, level slog.Level) bool {
	return l.Handler.Enabled(ctx, l.level(level))
}

func (l lower) Handle(ctx context.Context, r slog.Record) error {
	r.Level = l.level(r.Level)
	if r.Level >= slog.LevelWarn && aboutLateCache(r) {
		if r.Level = slog.LevelDebug; !l.Handler.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return l.Handler.Handle(ctx, r)
}

func (l lower) WithAttrs(attrs []slog.Attr) slog.Handler { return lower{l.Handler.WithAttrs(attrs)} }
func (l lower) WithGroup(name string) slog.Handler       { return lower{l.Handler.WithGroup(name)} }

// aboutLateCache finds upstream's words for a cache that is behind.
func aboutLateCache(r slog.Record) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok {
			found = strings.Contains(err.Error(), "is not as new as written version")
		}
		return !found
	})
	return found
}
