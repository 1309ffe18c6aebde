package announce

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// phase is where an announcer is in its life.
type phase uint8

const (
	joining phase = iota + 1 // listens to learn who is there; announces nothing
	ready
	leaving // stops in good order; the others take over at once
	idle    // has no link to announce on
)

// String is the phase as an Announcer's status has it.
func (p phase) String() string {
	switch p {
	case joining:
		return "Joining"
	case ready:
		return "Ready"
	case idle:
		return "NoLink"
	}
	return "Stopped"
}

// timing is how often heartbeats are sent and how long silence is taken for
// life.
type timing struct{ interval, silence time.Duration }

const (
	// vouchAfter is how long after its last heartbeat an announcer must still
	// have written its Announcer object for that to count: not what it wrote
	// just before it died.
	vouchAfter = 5 * time.Second
	// vouchFor is how long a renewal counts; they come every 30 s.
	vouchFor = 75 * time.Second
)

// timingFor keeps the number of packets a node sends and receives in bounds:
// 4 a second for each peer in small clusters, 2.5 in large ones.
func timingFor(nodes int) timing {
	if nodes <= 16 {
		return timing{250 * time.Millisecond, 1100 * time.Millisecond}
	}
	return timing{400 * time.Millisecond, 1500 * time.Millisecond}
}

// members keeps account of which nodes' announcers are alive, as this one sees
// them. It is pure: times are given to it. Not safe for concurrent use.
type members struct {
	self     string
	phase    phase
	started  time.Time
	lastTick time.Time
	peers    map[string]*peer
	// alive are the nodes that can announce; this one once it is ready.
	alive map[string]struct{}
}

type peer struct {
	addrs       []netip.Addr
	last        time.Time // last heard
	heard       bool
	mute        bool // alive by the API server's account, though not heard
	vouched     time.Time
	phase       phase
	clean       bool // it was heard to join before it was ready
	incarnation uint64
	seq         uint64
}

func newMembers(self string, now time.Time) *members {
	return &members{self: self, phase: joining, started: now, lastTick: now, peers: map[string]*peer{}, alive: map[string]struct{}{}}
}

func (m *members) timing() timing { return timingFor(len(m.peers) + 1) }

// setPeers says which other nodes there are, with their addresses. It returns
// those that were alive and are no longer nodes.
func (m *members) setPeers(nodes map[string][]netip.Addr) (dead []string) {
	for name := range m.peers {
		if _, ok := nodes[name]; !ok || name == m.self {
			delete(m.peers, name)
			if _, ok := m.alive[name]; ok {
				delete(m.alive, name)
				dead = append(dead, name)
			}
		}
	}
	for name, addrs := range nodes {
		if name == m.self {
			continue
		}
		if m.peers[name] == nil {
			m.peers[name] = &peer{}
		}
		m.peers[name].addrs = addrs
	}
	return dead
}

// heard takes in a heartbeat. It returns whether its sender has become alive,
// or has ceased to be, by it, and whether it is new here and wants to know who
// else is.
func (m *members) heard(b beat, now time.Time) (joined, left, greet bool) {
	p := m.peers[b.Node]
	if p == nil {
		return false, false, false // not a node of this cluster, or not yet
	}
	if b.Incarnation < p.incarnation || b.Incarnation == p.incarnation && b.Seq <= p.seq {
		return false, false, false // overtaken by a later one
	}
	greet = b.Phase == joining && (b.Incarnation > p.incarnation || !p.heard)
	p.mute = false
	before := phase(0)
	if b.Incarnation == p.incarnation {
		before = p.phase
	}
	p.incarnation, p.seq, p.phase, p.last, p.heard = b.Incarnation, b.Seq, b.Phase, now, true
	_, was := m.alive[b.Node]
	switch is := b.Phase == ready; {
	case is && !was:
		m.alive[b.Node] = struct{}{}
		// Who listens first claims nothing that another has a right to.
		p.clean = before == joining || before == idle
		return true, false, greet
	case !is && was:
		delete(m.alive, b.Node)
		return false, true, greet
	}
	return false, false, greet
}

// vouch says that the API server has just shown a sign of life of a node's
// announcer, which says that it is ready or not. Where heartbeats do not get
// through (a firewall), this keeps two nodes from answering for ever: the one
// that is not heard is taken for alive again.
func (m *members) vouch(node string, isReady bool, now time.Time) {
	if p := m.peers[node]; p != nil {
		p.vouched = time.Time{}
		if isReady {
			p.vouched = now
		}
	}
}

// vouched says whether a peer that is not heard is alive nevertheless.
func (m *members) vouched(p *peer, now time.Time) bool {
	last := p.last
	if last.Before(m.started) {
		last = m.started
	}
	return p.vouched.Sub(last) > vouchAfter && now.Sub(p.vouched) < vouchFor
}

// setUsable says whether this node has links to announce on. One that has none
// leaves announcing to the others, and joins anew when it has.
func (m *members) setUsable(usable bool, now time.Time) (changed bool) {
	switch {
	case !usable && (m.phase == ready || m.phase == joining):
		m.phase = idle
		delete(m.alive, m.self)
		return true
	case usable && m.phase == idle:
		m.phase, m.started = joining, now
		return true
	}
	return false
}

// mutes are the nodes that are alive though they are not heard, sorted.
func (m *members) mutes() (names []string) {
	for name, p := range m.peers {
		if p.mute {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// tick lets time pass. It returns who has been silent for too long, who is
// alive though not heard, and whether this node has just become ready.
func (m *members) tick(now time.Time) (dead, mute []string, becameReady bool) {
	t := m.timing()
	if gap := now.Sub(m.lastTick); gap > 2*t.interval && len(m.peers) > 0 {
		// It is this process that stood still: what it did not hear says nothing
		// about the others.
		for _, p := range m.peers {
			if p.last = p.last.Add(gap); p.last.After(now) {
				p.last = now
			}
		}
	}
	m.lastTick = now
	allHeard := true
	for name, p := range m.peers {
		if now.Sub(p.last) > t.silence {
			_, alive := m.alive[name]
			switch vouched := m.vouched(p, now); {
			case alive && !vouched:
				delete(m.alive, name)
				dead = append(dead, name)
			case !alive && vouched:
				m.alive[name] = struct{}{}
				p.clean = false
				mute = append(mute, name)
			}
			_, p.mute = m.alive[name]
			p.heard = false
		}
		allHeard = allHeard && p.heard
	}
	slices.Sort(dead)
	if m.phase == joining && (allHeard || now.Sub(m.started) > t.silence) {
		m.phase = ready
		m.alive[m.self] = struct{}{}
		return dead, mute, true
	}
	return dead, mute, false
}

// leave ends this node's part.
func (m *members) leave() {
	m.phase = leaving
	delete(m.alive, m.self)
}

// names are the nodes alive, sorted.
func (m *members) names() []string { return slices.Sorted(maps.Keys(m.alive)) }
