package claim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
)

// band is a run of n things numbered from 0.
type band struct {
	n  uint64
	id func(i uint64) string
}

// randomTries is how many random numbers are drawn in a band before walking it. In a band three quarters full, one in
// a hundred draws that all miss.
const randomTries = 16

// next claims any free thing of the first tier that has one. Within a tier every thing is as likely as any other, until
// the tier gets crowded; then the walk starts at random. The bands of one tier should not overlap, but may.
//
// Where to try is decided by what this server has seen claimed, so that a claim costs one write however many there are;
// whether it succeeds is decided by etcd alone. Before answering that all is full, the claims are read once, since other
// servers may have released some.
func (b *Book) next(ctx context.Context, tiers [][]band, o Owner, dryRun bool) (string, error) {
	for read := false; ; read = true {
		for _, tier := range tiers {
			for {
				id, ok := b.pick(tier)
				if !ok {
					break
				}
				if dryRun {
					return id, nil
				}
				err := b.Claim(ctx, id, o)
				if err == nil {
					return id, nil
				}
				if !errors.Is(err, ErrTaken) {
					return "", err
				}
			}
		}
		if read {
			return "", ErrFull
		}
		if _, err := b.List(ctx); err != nil {
			return "", fmt.Errorf("looking for something free: %w", err)
		}
	}
}

// pick returns something of the tier that was not claimed when last looked, and whether there is any.
func (b *Book) pick(tier []band) (string, bool) {
	var total uint64
	for _, bd := range tier {
		total += bd.n
	}
	if total == 0 {
		return "", false
	}
	at := func(i uint64) string {
		for _, bd := range tier {
			if i < bd.n {
				return bd.id(i)
			}
			i -= bd.n
		}
		panic("unreachable: i < total")
	}
	for range randomTries {
		if id := at(rand.Uint64N(total)); !b.taken(id) {
			return id, true
		}
	}
	// Among one more things than are claimed, one is free.
	steps := min(total, uint64(b.known())+1)
	start := rand.Uint64N(total)
	for i := range steps {
		if id := at((start + i) % total); !b.taken(id) {
			return id, true
		}
	}
	return "", false
}
