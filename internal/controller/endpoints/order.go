package endpoints

import (
	"slices"
	"sync"

	"k8s.io/client-go/util/workqueue"
)

// order is a work queue's order with two lanes: what was marked urgent goes
// first, each lane in order of arrival. It is how a Pod that becomes ready does
// not wait behind five thousand Services being created.
//
// The workqueue calls Push, Pop, Touch and Len under its own lock; mark may be
// called from anywhere, before the item is added.
type order struct {
	mu      sync.Mutex
	marked  map[name]struct{} // urgent once pushed
	urgent  []name
	waiting []name
}

var _ workqueue.Queue[name] = (*order)(nil)

func newOrder() *order { return &order{marked: map[name]struct{}{}} }

// mark makes the item's next place in the queue, or the one it has, urgent.
func (o *order) mark(item name) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.marked[item] = struct{}{}
}

// Push adds a new item.
func (o *order) Push(item name) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.unmark(item) {
		o.urgent = append(o.urgent, item)
	} else {
		o.waiting = append(o.waiting, item)
	}
}

// Touch moves an item that waits to the urgent lane if it was marked.
func (o *order) Touch(item name) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.unmark(item) {
		return
	}
	if i := slices.Index(o.waiting, item); i >= 0 {
		o.waiting = slices.Delete(o.waiting, i, i+1)
		o.urgent = append(o.urgent, item)
	}
}

// Len is the number of items.
func (o *order) Len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.urgent) + len(o.waiting)
}

// Pop takes the next item. The workqueue never calls it when Len is 0.
func (o *order) Pop() (item name) {
	o.mu.Lock()
	defer o.mu.Unlock()
	lane := &o.urgent
	if len(*lane) == 0 {
		lane = &o.waiting
	}
	item = (*lane)[0]
	*lane = (*lane)[1:]
	return item
}

func (o *order) unmark(item name) bool {
	_, ok := o.marked[item]
	delete(o.marked, item)
	return ok
}
