package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// hedge is how long one upstream may be silent before the next is asked too.
const hedge = 350 * time.Millisecond

// group is the upstreams in charge of a domain.
type group struct {
	r         *Resolver
	suffix    []byte // wire form; nil for every name
	upstreams []*upstream
}

func sortGroups(groups []*group) {
	slices.SortFunc(groups, func(a, b *group) int {
		return cmp.Or(cmp.Compare(len(b.suffix), len(a.suffix)), slices.Compare(a.suffix, b.suffix))
	})
}

// covers reports whether a name in wire form is the group's domain or below it.
func (g *group) covers(name string) bool {
	if !strings.HasSuffix(name, string(g.suffix)) {
		return false
	}
	// It must be a suffix of labels, not of bytes.
	at := len(name) - len(g.suffix)
	for i := 0; i < len(name); i += 1 + int(name[i]) {
		if i >= at || name[i] == 0 {
			return i == at || g.suffix == nil
		}
	}
	return g.suffix == nil
}

// order is whom to ask: those that work, as they are listed; if none works,
// one of those that do not, now and then, for it may work again.
func (g *group) order(now time.Time) []*upstream {
	var up []*upstream
	for _, u := range g.upstreams {
		if !u.looping.Load() && !u.down() {
			up = append(up, u)
		}
	}
	if len(up) > 0 {
		return up
	}
	for _, u := range g.upstreams {
		if !u.looping.Load() && u.mayTry(now) {
			return []*upstream{u}
		}
	}
	return nil
}

// result is one upstream's reply.
type result struct {
	reply *dns.Msg
	err   error
}

// exchange asks one upstream, the next when it fails or is silent, and so on
// twice round, and returns the first useful reply; a refusal or failure only
// if nobody had more to say.
func (g *group) exchange(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	order := g.order(time.Now())
	if len(order) == 0 {
		g.r.m.broken.Inc()
		if len(g.upstreams) == 0 {
			return nil, fmt.Errorf("%w: none is configured", ErrNoUpstream)
		}
		return nil, fmt.Errorf("%w: all %d are down or loop back to this server", ErrNoUpstream, len(g.upstreams))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	attempts := 2 * len(order)
	results := make(chan result, attempts)
	started, pending := 0, 0
	next := func() {
		u := order[started%len(order)]
		started++
		pending++
		go func() {
			reply, err := u.exchange(ctx, m.Copy())
			results <- result{reply, err}
		}()
	}
	next()
	timer := time.NewTicker(hedge)
	defer timer.Stop()
	var bad *dns.Msg
	var errs []error
	for {
		select {
		case res := <-results:
			pending--
			switch {
			case res.err != nil:
				errs = append(errs, res.err)
			case res.reply.Rcode == dns.RcodeSuccess || res.reply.Rcode == dns.RcodeNameError:
				return res.reply, nil
			default:
				bad = res.reply
			}
			// Asking the same server again right after it failed helps nobody.
			if started < len(order) {
				next()
				timer.Reset(hedge)
			} else if pending == 0 {
				if bad != nil {
					return bad, nil
				}
				return nil, fmt.Errorf("%w: %w", ErrNoUpstream, errors.Join(errs...))
			}
		case <-timer.C:
			if started < attempts {
				next()
			}
		case <-ctx.Done():
			if bad != nil {
				return bad, nil
			}
			return nil, fmt.Errorf("%w: %w", ErrNoUpstream, ctx.Err())
		}
	}
}
