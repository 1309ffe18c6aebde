package lb

import (
	"testing"
	"time"
)

func TestMonitor(t *testing.T) {
	m := NewMonitor()
	m.patience.Store(int64(15 * time.Second))
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).UnixNano() }
	m.elected.Store(ago(time.Second))
	m.tried.Store(ago(time.Second))
	if err := m.Ready(); err != nil {
		t.Errorf("stands by: %v", err)
	}
	m.elected.Store(ago(31 * time.Second))
	if m.Ready() == nil {
		t.Error("ready although the election does not get through")
	}
	if err := m.Live(); err != nil {
		t.Errorf("an API server that is away is no reason to die: %v", err)
	}
	m.tried.Store(ago(3 * time.Minute))
	if m.Live() == nil {
		t.Error("alive although the election stands still")
	}
	m.elected.Store(ago(0))
	m.tried.Store(ago(0))
	m.begin(&controller{})
	if m.Ready() == nil {
		t.Error("ready before it has taken over what Services have")
	}
	m.adopted.Store(true)
	if err := m.Ready(); err != nil {
		t.Errorf("leads: %v", err)
	}
	m.turned.Store(ago(3 * time.Minute))
	if m.Live() == nil {
		t.Error("alive although the leader stands still")
	}
	m.end()
	if err := m.Live(); err != nil {
		t.Errorf("stands by again: %v", err)
	}
	// The Lease is sure while it has been renewed lately, and no longer.
	for since, want := range map[time.Duration]bool{0: true, 12 * time.Second: true, 13 * time.Second: false, time.Minute: false} {
		m.renewed.Store(int64(time.Since(epoch) - since))
		if m.holds() != want {
			t.Errorf("renewed %s ago: sure of it %v", since, !want)
		}
	}
}
