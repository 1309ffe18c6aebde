package zone

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"fairway.dev/fairway/internal/dns/wire"
)

func (o *Options) check() error {
	var errs []error
	if b, ok := wire.AppendName(nil, o.Domain); !ok || len(b) > 128 {
		errs = append(errs, fmt.Errorf("cluster domain %q: not a domain name of at most 126 characters; cluster.local is the usual one", o.Domain))
	}
	switch o.Pods {
	case PodsDisabled, PodsInsecure, PodsVerified:
	default:
		errs = append(errs, fmt.Errorf("names of Pods %q: must be %s, %s or %s", o.Pods, PodsDisabled, PodsInsecure, PodsVerified))
	}
	if ns, name, ok := strings.Cut(o.NameServer, "/"); !ok || ns == "" || name == "" || len(ns) > 63 || len(name) > 63 {
		errs = append(errs, fmt.Errorf("name server's Service %q: must be namespace/name, such as kube-system/kube-dns", o.NameServer))
	}
	return errors.Join(errs...)
}

// The apply functions put a new state of one object (nil: it is gone) in the
// place of an old one (nil: it is new). s.writeMu is held.

func (s *Store) applyService(old, new *service) {
	if old != nil && (new == nil || old.v4 != new.v4 || old.v6 != new.v6 || old.has != new.has) {
		s.rev.dropService(old)
	}
	switch {
	case old == nil && new != nil:
		s.names.add(new.ns)
	case old != nil && new == nil:
		s.names.drop(old.ns)
	}
	o := new
	if o == nil {
		o = old
	}
	s.update(serviceKey(o.ns, o.name), func(e *entry) { e.svc = new })
	if new != nil {
		s.rev.addService(new)
	}
}

// changed is when what caused the new state happened.
func (s *Store) applySlice(old, new *slice, changed time.Time) {
	if old != nil && old.service != "" && (new == nil || new.service != old.service) {
		s.update(serviceKey(old.ns, old.service), func(e *entry) { e.slices = without(e.slices, old) })
	}
	if old != nil {
		s.rev.dropSlice(old)
	}
	if new == nil {
		delete(s.slices, objectKey{old.ns, old.name})
		return
	}
	s.slices[objectKey{new.ns, new.name}] = new
	if new.service == "" {
		return
	}
	key := serviceKey(new.ns, new.service)
	s.update(key, func(e *entry) {
		e.slices = append(without(e.slices, old), new)
	})
	s.rev.addSlice(new)
	if s.opts.Programmed != nil && !changed.IsZero() && s.synced.Load() {
		if svc := s.service(new.ns, new.service); svc != nil && svc.has&headless != 0 {
			s.opts.Programmed(time.Since(changed))
		}
	}
}

// without copies a list less one element, leaving the original to its readers.
func without(list []*slice, gone *slice) []*slice {
	out := make([]*slice, 0, len(list)+1)
	for _, sl := range list {
		if sl != gone {
			out = append(out, sl)
		}
	}
	return out
}

func (s *Store) applyPod(old, new *pod) {
	if old != nil {
		s.podIP.change(old, -1)
	}
	if new == nil {
		delete(s.pods, objectKey{old.ns, old.name})
		return
	}
	s.pods[objectKey{new.ns, new.name}] = new
	s.podIP.change(new, +1)
}

func (s *Store) applyNamespace(old, new *namespace) {
	switch {
	case old == nil && new != nil:
		s.names.add(new.name)
	case old != nil && new == nil:
		s.names.drop(old.name)
	}
}
