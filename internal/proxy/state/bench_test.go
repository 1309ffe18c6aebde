package state

import (
	"fmt"
	"net/netip"
	"testing"
)

// BenchmarkSync measures one changed endpoint of a Service with many.
func BenchmarkSync(b *testing.B) {
	for _, n := range []int{2, 50, 1000, 5000} {
		b.Run(fmt.Sprint(n, " endpoints"), func(b *testing.B) {
			f := fixture{}
			t := NewTable(View{NodeName: here})
			t.SetService(f.service())
			mk := func(slice, generation int) *Slice {
				s := f.slice(fmt.Sprintf("s%03d", slice))
				for i := slice * 100; i < min(n, slice*100+100); i++ {
					g := 0
					if i == slice*100 {
						g = generation
					}
					s.Endpoints = append(s.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(g), byte(i >> 8), byte(i)}), Conditions: Ready | Serving})
				}
				return s
			}
			var cur *Slice
			for i := 0; i*100 < n; i++ {
				s := mk(i, 0)
				t.SetSlice(nil, s)
				if i == 0 {
					cur = s
				}
			}
			t.Sync()
			two := [2]*Slice{mk(0, 1), mk(0, 2)}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				next := two[i&1]
				i++
				t.SetSlice(cur, next)
				cur = next
				if r := t.Sync(); len(r.Diff.Set) != 4 {
					b.Fatal(len(r.Diff.Set))
				}
			}
		})
	}
}
