package endpoints

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// freshness remembers which objects' syncs had to be put off because the cache
// had not yet seen this process's own last write, so that they go on as soon
// as it has. Safe for concurrent use.
type freshness struct {
	mu      sync.Mutex
	waiting map[name]time.Time // since when
}

func newFreshness() *freshness { return &freshness{waiting: map[name]time.Time{}} }

// lost is how long a write is waited for. What has not arrived by then was
// undone while the watch was interrupted, and never will.
const lost = 10 * time.Second

// await notes that the object's sync waits for the cache, and says whether it
// has for too long. The caller looks at the cache once more afterwards: the
// event may have just gone by.
func (f *freshness) await(object name) (tooLong bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	since, ok := f.waiting[object]
	if !ok {
		since = time.Now()
		f.waiting[object] = since
	}
	return time.Since(since) > lost
}

// arrived says whether a sync waits for the object, which the cache has now
// seen change, and forgets it.
func (f *freshness) arrived(object name) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.waiting[object]
	delete(f.waiting, object)
	return ok
}

// written remembers the resource version of this process's last write of each
// object. Safe for concurrent use.
type written struct {
	mu       sync.Mutex
	versions map[name]string
}

func newWritten() *written { return &written{versions: map[name]string{}} }

func (w *written) set(object name, version string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.versions[object] = version
}

func (w *written) forget(object name) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.versions, object)
}

// newer says whether the last write is newer than the given version, that of
// the object in the cache ("" when the cache has none). Versions that cannot be
// compared count as not newer.
func (w *written) newer(object name, version string) bool {
	w.mu.Lock()
	last, ok := w.versions[object]
	w.mu.Unlock()
	if !ok {
		return false
	}
	if version == "" {
		return true
	}
	n, err := resourceversion.CompareResourceVersion(last, version)
	return err == nil && n > 0
}
