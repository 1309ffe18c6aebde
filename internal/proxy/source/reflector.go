package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// kind is one resource of the API and how a proxy reads it.
type kind[T any] struct {
	name   string
	path   string
	query  url.Values // selectors
	decode func(*decoder, []byte) (objectMeta, T, error)
	// optional kinds may be forbidden or unknown to an older server; they then
	// count as empty.
	optional bool
}

// sink receives what a reflector learns.
// but is none of a proxy's business.
type sink[T any] interface {
	set(m objectMeta, obj T)
	del(k objectKey)
	keys() map[objectKey]struct{} // what it holds now
	synced()
}

// Watches end after 5 to 10 minutes, as client-go's do; a server that is still
// silent patience later is taken for dead.
const (
	minWatch = 5 * time.Minute
	patience = 30 * time.Second
	// initialPatience is how long a streaming list may fall silent before its
	// end: the server is then taken for one that does not know streaming lists
	// and has started a plain watch.
	initialPatience = 10 * time.Second
	minBackoff      = 50 * time.Millisecond
	maxBackoff      = 10 * time.Second
	optionalRetry   = 5 * time.Minute
)

// reflector keeps a sink in step with the API's objects of a kind.
type reflector[T any] struct {
	kind     kind[T]
	client   *client
	sink     sink[T]
	decoder  *decoder
	log      *slog.Logger
	version  string // to watch from; empty: list anew
	noStream bool   // the server does not know streaming lists
	skipped  int    // objects that could not be decoded
}

// run lists and watches until ctx ends.
func (r *reflector[T]) run(ctx context.Context) {
	backoff := minBackoff
	for ctx.Err() == nil {
		start := time.Now()
		err := r.once(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil || errors.Is(err, io.EOF): // the watch ended, as watches do
			backoff = minBackoff
			if time.Since(start) > time.Second {
				continue
			}
		case gone(err):
			r.log.Info("watch: version is too old to go on from, listing anew", "kind", r.kind.name)
			r.version = ""
		case r.kind.optional && codeIs(err, http.StatusForbidden, http.StatusNotFound):
			r.log.Info("not readable here, going without", "kind", r.kind.name, "err", err)
			r.sink.synced()
			sleep(ctx, optionalRetry)
			continue
		default:
			r.log.Warn("list or watch failed, trying again", "kind", r.kind.name, "err", err, "in", backoff)
		}
		if time.Since(start) > time.Minute {
			backoff = minBackoff
		}
		sleep(ctx, backoff/2+rand.N(backoff))
		backoff = min(2*backoff, maxBackoff)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// once lists if it has to, then watches until the watch ends.
func (r *reflector[T]) once(ctx context.Context) error {
	if r.version == "" && r.noStream {
		if err := r.list(ctx); err != nil {
			return err
		}
	}
	err := r.watch(ctx, r.version == "")
	if r.version == "" && !r.noStream && (codeIs(err, http.StatusBadRequest, http.StatusUnprocessableEntity) || errors.Is(err, errSilent)) {
		r.log.Info("server has no streaming list, listing by pages", "kind", r.kind.name, "err", err)
		r.noStream = true
		return nil
	}
	return err
}

var errSilent = errors.New("no answer to a streaming list")

// round remembers during a list what it has not seen yet, which at its end is
// what is gone.
type round[T any] struct {
	r      *reflector[T]
	unseen map[objectKey]struct{}
}

func (r *reflector[T]) begin() round[T] { return round[T]{r, r.sink.keys()} }

func (l round[T]) item(raw []byte) {
	m, obj, err := l.r.kind.decode(l.r.decoder, raw)
	if err != nil {
		l.r.skip(m, err)
		return
	}
	delete(l.unseen, m.objectKey)
	l.r.sink.set(m, obj)
}

func (l round[T]) end(version string) {
	for k := range l.unseen {
		l.r.sink.del(k)
	}
	l.r.version = version
	l.r.sink.synced()
}

func (r *reflector[T]) skip(m objectMeta, err error) {
	if r.skipped++; r.skipped <= 10 {
		r.log.Error("object cannot be decoded and is left out", "kind", r.kind.name, "namespace", m.namespace, "name", m.name, "err", err)
	}
}

// list lists page by page and sets the version to watch from.
func (r *reflector[T]) list(ctx context.Context) error {
	l := r.begin()
	q := cloneQuery(r.kind.query)
	q.Set("limit", "500")
	for {
		body, err := r.client.get(ctx, r.kind.path, q, contentType)
		if err != nil {
			return err
		}
		f := frames{r: bufio.NewReaderSize(body, 256<<10)}
		meta, err := f.list(func(raw []byte) error { l.item(raw); return nil })
		body.Close()
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		if meta.next == "" {
			l.end(meta.version)
			return nil
		}
		q.Set("continue", meta.next)
	}
}

// watch follows the changes from r.version; initial asks for all that there is
// first, as a streaming list
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#streaming-lists).
func (r *reflector[T]) watch(ctx context.Context, initial bool) error {
	timeout := minWatch + rand.N(minWatch)
	q := cloneQuery(r.kind.query)
	q.Set("watch", "true")
	q.Set("allowWatchBookmarks", "true")
	q.Set("resourceVersion", r.version)
	q.Set("timeoutSeconds", strconv.Itoa(int(timeout/time.Second)))
	if initial {
		q.Set("sendInitialEvents", "true")
		q.Set("resourceVersionMatch", "NotOlderThan")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dead := time.AfterFunc(timeout+patience, func() { cancel(errors.New("server let the watch outlive its time")) })
	defer dead.Stop()

	body, err := r.client.get(ctx, r.kind.path, q, contentType+";stream=watch,"+contentType)
	if err != nil {
		if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
			return c
		}
		return err
	}
	defer body.Close()
	f := frames{r: bufio.NewReaderSize(body, 256<<10)}
	// A server may take its time to answer at all; one that has answered knows
	// what it wants to send.
	silent := time.AfterFunc(initialPatience, func() { cancel(errSilent) })
	defer silent.Stop()
	if !initial {
		silent.Stop()
	}
	var l *round[T]
	if initial {
		b := r.begin()
		l = &b
	}
	for n := 0; ; n++ {
		b, err := f.next()
		if err != nil {
			if c := context.Cause(ctx); c != nil {
				return c
			}
			return err
		}
		if l != nil && n%1024 == 0 {
			silent.Reset(initialPatience)
		}
		ended, err := r.event(b, l)
		if err != nil {
			return err
		}
		if ended {
			l = nil
			silent.Stop()
		}
	}
}

// event takes in one watch event; l is the list under way, if any. ended is
// true for the bookmark that ends it.
func (r *reflector[T]) event(b []byte, l *round[T]) (ended bool, err error) {
	var typ, object []byte
	w := fields(b)
	for w.next() {
		switch w.num {
		case 1:
			typ = w.data
		case 2:
			ext := fields(w.data) // runtime.RawExtension
			for ext.next() {
				if ext.num == 1 {
					object = ext.data
				}
			}
		}
	}
	if w.err != nil {
		return false, fmt.Errorf("watch event: %w", w.err)
	}
	_, raw, err := envelope(object)
	if err != nil {
		return false, fmt.Errorf("watch event: %w", err)
	}
	switch string(typ) {
	case "ERROR":
		return false, statusOf(http.StatusInternalServerError, object)
	case "BOOKMARK":
		var m objectMeta
		o := fields(raw)
		for o.next() {
			if o.num == 1 {
				if m, err = r.decoder.meta(o.data); err != nil {
					return false, err
				}
			}
		}
		if l != nil {
			if m.endOfInitial {
				l.end(m.version)
				return true, nil
			}
			return false, nil
		}
		r.version = m.version
	case "ADDED", "MODIFIED":
		if l != nil {
			l.item(raw)
			return false, nil
		}
		m, obj, err := r.kind.decode(r.decoder, raw)
		if err != nil {
			r.skip(m, err)
			return false, nil
		}
		r.version = m.version
		r.sink.set(m, obj)
	case "DELETED":
		m, _, err := r.kind.decode(r.decoder, raw)
		if m.name == "" {
			return false, fmt.Errorf("watch event: deleted object without a name: %w", errors.Join(err, errWire))
		}
		if l != nil {
			delete(l.unseen, m.objectKey)
		} else {
			r.version = m.version
		}
		r.sink.del(m.objectKey)
	}
	return false, nil
}

func cloneQuery(q url.Values) url.Values {
	out := url.Values{}
	for k, v := range q {
		out[k] = v
	}
	return out
}
