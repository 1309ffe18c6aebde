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
			f := oneOfMany(n*7919%l.services, l.backends, 0)
			b := &f.Backends[0].Addr // another one in each round over the Services
			*b = netip.AddrPortFrom(b.Addr(), uint16(10000+n/l.services%50000))
			return state.Diff{Set: []*state.Frontend{f}}
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

// BenchmarkConnect is a new TCP connection, its first answer and its end, from
// the client to a Pod: directly, and through a ClusterIP, a node port and an
// affinity Service, in turns. The ratios are to the direct one, which is
// conntracked too.
func BenchmarkConnect(b *testing.B) {
	for _, a := range []addresses{ipv4, ipv6} {
		b.Run(a.name, func(b *testing.B) {
			l := newLab(b)
			port := nodePort(state.TCP, a, 1)
			keeps := clusterIP(state.TCP, a.service+":81", 1)
			keeps.Affinity = time.Hour
			fs := append(slices.Collect(many(10_000, 5)), clusterIP(state.TCP, a.service+":80", 1), keeps, port)
			must(b, l.p.Replace(context.Background(), slices.Values(fs)))
			ways := []string{netip.AddrPortFrom(netip.MustParseAddr(a.pod[1]), 8080).String(), a.service + ":80", a.node + ":30080", a.service + ":81"}
			took := make([][]time.Duration, len(ways))
			const slice = 50
			for b.Loop() {
				for i, way := range ways {
					for range slice {
						start := time.Now()
						if _, _, err := l.ask(l.client, state.TCP, way); err != nil {
							b.Fatal(err)
						}
						took[i] = append(took[i], time.Since(start))
					}
				}
			}
			median := func(i int) float64 {
				slices.Sort(took[i])
				return float64(took[i][len(took[i])/2])
			}
			direct := median(0)
			b.ReportMetric(direct/1000, "direct-µs")
			b.ReportMetric(median(1)/direct, "clusterip-ratio")
			b.ReportMetric(median(2)/direct, "nodeport-ratio")
			b.ReportMetric(median(3)/direct, "affinity-ratio")
		})
	}
}
