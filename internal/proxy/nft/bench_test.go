package nft

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"testing"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

// many are n ClusterIP frontends with m backends each.
func many(n, m int) iter.Seq[*state.Frontend] {
	return func(yield func(*state.Frontend) bool) {
		for i := range n {
			if !yield(oneOfMany(i, m, 0)) {
				return
			}
		}
	}
}

// oneOfMany is frontend i, whose backends differ with the version.
func oneOfMany(i, m, version int) *state.Frontend {
	f := &state.Frontend{
		Key:        state.Key{Addr: netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}), Port: 80, Proto: state.TCP},
		ClusterIP:  true,
		Backends:   make([]state.Backend, m),
		Masquerade: state.MasqueradeOffCluster,
	}
	for j := range f.Backends {
		n := i*64 + j
		f.Backends[j].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10 + byte(n>>24), byte(n >> 16), byte(n >> 8), byte(n)}), uint16(8080))
	}
	if m > 0 {
		f.Backends[version%m].Addr = netip.AddrPortFrom(f.Backends[version%m].Addr.Addr(), uint16(9000+version%1000))
	}
	return f
}

func benchNode(b *testing.B) *Programmer {
	_, p := bareNode(b)
	if err := p.Configure(context.Background(), labFacts); err != nil {
		b.Fatal(err)
	}
	return p
}

func must(b *testing.B, err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}

var loads = []struct{ services, backends int }{{1000, 2}, {10_000, 2}, {5000, 50}, {44_000, 1}, {100_000, 10}}

// BenchmarkLoad is the time from an empty kernel to the complete table.
func BenchmarkLoad(b *testing.B) {
	ctx := context.Background()
	for _, l := range loads {
		b.Run(fmt.Sprintf("%dx%d", l.services, l.backends), func(b *testing.B) {
			p := benchNode(b)
			all := slices.Collect(many(l.services, l.backends))
			for b.Loop() {
				must(b, p.Replace(ctx, slices.Values(all)))
				b.StopTimer()
				must(b, Cleanup(ctx, p.ns, ""))
				b.StartTimer()
			}
		})
	}
}

// BenchmarkAdopt is the time a new process takes to read the table it finds and
// to see that it is right.
func BenchmarkAdopt(b *testing.B) {
	ctx := context.Background()
	for _, l := range loads {
		b.Run(fmt.Sprintf("%dx%d", l.services, l.backends), func(b *testing.B) {
			p := benchNode(b)
			all := slices.Collect(many(l.services, l.backends))
			must(b, p.Replace(ctx, slices.Values(all)))
			for b.Loop() {
				must(b, p.Replace(ctx, slices.Values(all)))
			}
		})
	}
}

// BenchmarkChange is one Apply beside a loaded table: an endpoint replaced, a
// Service that grows by one and shrinks again, a Service that comes and goes.
func BenchmarkChange(b *testing.B) {
	ctx := context.Background()
	for _, l := range loads {
		p := benchNode(b)
		must(b, p.Replace(ctx, many(l.services, l.backends)))
		run := func(name string, diff func(n int) state.Diff) {
			b.Run(fmt.Sprintf("%dx%d/%s", l.services, l.backends, name), func(b *testing.B) {
				var took []time.Duration
				for n := 0; b.Loop(); n++ {
					b.StopTimer()
					d := diff(n)
					b.StartTimer()
					start := time.Now()
					must(b, p.Apply(ctx, d))
					took = append(took, time.Since(start))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			})
		}
		run("replace", func(n int) state.Diff {
			return state.Diff{Set: []*state.Frontend{oneOfMany(n*7919%l.services, l.backends, n+1)}}
		})
		run("grow", func(n int) state.Diff {
			return state.Diff{Set: []*state.Frontend{oneOfMany(5, l.backends+1+n%2, 0)}}
		})
		run("service", func(n int) state.Diff {
			f := oneOfMany(l.services+1, l.backends, 0)
			if n%2 == 0 {
				return state.Diff{Set: []*state.Frontend{f}}
			}
			return state.Diff{Remove: []state.Key{f.Key}}
		})
		p.Close()
	}
}
