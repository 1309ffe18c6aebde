package lean

import (
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestReadOnly(t *testing.T) {
	maps := `00400000-00500000 r--p 00000000 fd:01 123 /opt/a b/fairway
00500000-00600000 r-xp 00100000 fd:01 123 /opt/a b/fairway
00600000-00700000 rw-p 00200000 fd:01 123 /opt/a b/fairway
00700000-00800000 r--p 00000000 fd:01 456 /lib/other
c000000000-c000400000 rw-p 00000000 00:00 0
`
	got, err := readOnly(strings.NewReader(maps), "/opt/a b/fairway")
	if err != nil {
		t.Fatal(err)
	}
	if want := []segment{{0x400000, 0x500000}, {0x500000, 0x600000}}; !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	if _, err := readOnly(strings.NewReader("zz-00500000 r--p 0 0 1 /x\n"), "/x"); err == nil {
		t.Error("no error for a line that makes no sense")
	}
}

func TestIsSmall(t *testing.T) {
	for _, tc := range []struct {
		was  bool
		rate float64
		live uint64
		want bool
	}{
		{true, 0, 0, true}, {true, busyRate, largeHeap, true},
		{true, busyRate + 1, 0, false}, {true, 0, largeHeap + 1, false},
		{false, idleRate + 1, 0, false}, {false, 0, largeHeap, false}, {false, idleRate, largeHeap * 3 / 4, true},
	} {
		if got := isSmall(tc.was, tc.rate, tc.live); got != tc.want {
			t.Errorf("was small %v, allocates %v a second, holds %d: %v, want %v", tc.was, tc.rate, tc.live, got, tc.want)
		}
	}
}

func TestRead(t *testing.T) {
	before := read(allocs)
	keep := make([]byte, 1<<20)
	if after := read(allocs); after-before < uint64(len(keep)) {
		t.Errorf("%d bytes more after allocating %d", after-before, len(keep))
	}
	runtime.GC()
	if read(live) == 0 {
		t.Error("no byte is in use")
	}
}

func TestSettle(t *testing.T) {
	if err := Settle(); err != nil {
		t.Fatal(err)
	}
	// The code goes on running, so its pages came back.
	if strings.Repeat("ab", 3) != "ababab" {
		t.Error("constants are gone")
	}
}
