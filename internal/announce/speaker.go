package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/netns"
)

// Options are what Run needs.
type Options struct {
	// NodeName is the Node that this announcer is for.
	NodeName string
	// NetNS is the node's network namespace; nil is this process's own.
	NetNS *netns.NS
	// Shared must be running.
	Shared *Shared
	// Port is the UDP port of heartbeats, the same on all nodes; DefaultPort if 0.
	Port uint16
	// Key, if not empty, signs heartbeats; the same on all nodes.
	Key []byte
	// Logger must be set.
	Logger *slog.Logger
}

// Run announces for one node until ctx ends. Then it tells the other nodes that
// it leaves, so that they take over at once.
func Run(ctx context.Context, o Options) error {
	if o.Logger == nil || o.Shared == nil || o.NodeName == "" {
		return errors.New("announce: Options.NodeName, Shared and Logger must be set")
	}
	if o.Port == 0 {
		o.Port = DefaultPort
	}
	select {
	case <-o.Shared.synced:
	case <-ctx.Done():
		return nil
	}
	now := time.Now()
	s := &speaker{
		Options: o, logger: o.Logger.With("node", o.NodeName),
		members: newMembers(o.NodeName, now), incarnation: uint64(now.UnixNano()),
		entries: map[netip.Addr]*Entry{}, winners: map[netip.Addr]string{}, claims: map[netip.Addr]*claim{},
		responders: map[responderKey]Responder{},
		inbox:      make(chan received, 256),
	}
	return s.run(ctx)
}

// speaker is the announcer of one node. All its state belongs to the goroutine
// of run.
type speaker struct {
	Options
	logger      *slog.Logger
	members     *members
	incarnation uint64
	seq         uint64
	radio       *radio
	radioErr    string
	inbox       chan received

	nodes   map[string]nodeFacts
	entries map[netip.Addr]*Entry
	winners map[netip.Addr]string // as this node sees it
	claims  map[netip.Addr]*claim // what this node announces
	links   []link

	responders map[responderKey]Responder
	repeating  []repeat // by time
	dirty      bool     // the report is to be written
	repace     bool     // pace has changed
}

func (s *speaker) run(ctx context.Context) error {
	sub := s.Shared.subscribe()
	defer s.Shared.unsubscribe(sub)
	done := make(chan struct{})
	defer close(done)
	linkEvents, err := watchLinks(s.NetNS, done)
	if err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	if err := s.readLinks(); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	reports := newReporter(s.Shared.fairway, s.NodeName, s.logger)
	defer reports.stop()
	defer s.close()

	tick := time.NewTicker(s.pace())
	defer tick.Stop()
	var sent, vouched time.Time
	for {
		var again <-chan time.Time
		if len(s.repeating) > 0 {
			again = time.After(time.Until(s.repeating[0].at))
		}
		select {
		case <-ctx.Done():
			s.leave()
			reports.set(s.report())
			return nil
		case <-sub.C:
			entries, nodes := sub.take()
			if nodes != nil {
				s.setNodes(ctx, nodes)
				s.repace = true
			}
			s.setEntries(entries)
		case r := <-s.inbox:
			s.hear(r)
		case now := <-tick.C:
			// Nodes become ready by time alone, and die by it.
			if now.Sub(vouched) > time.Second {
				s.Shared.vouch(s.members)
				vouched = now
			}
			dead, mute, became := s.members.tick(now)
			s.tune(ctx)
			switch {
			case became:
				s.logger.Info("announcer is ready", "alive", s.members.names())
				s.beat() // before claiming, so that others let go first
				sent = now
				s.electAll()
				s.repace = true
			case now.Sub(sent) >= s.members.timing().interval-time.Millisecond:
				s.beat()
				sent = now
			}
			if len(dead) > 0 {
				s.logger.Warn("nodes fell silent, taking their addresses over", "nodes", dead)
				s.lost(dead)
			}
			for _, n := range mute {
				s.logger.Warn("node is alive by the API server's account, and its heartbeats do not get through: is its UDP port blocked?", "peer", n, "port", s.Port)
				s.joined(n)
			}
		case <-again:
			s.repeat()
		case _, ok := <-linkEvents:
			if !ok {
				return fmt.Errorf("announce: the watch for links of node %s broke off", s.NodeName)
			}
			settle(ctx, linkEvents)
			if err := s.readLinks(); err != nil {
				s.logger.Warn("announce: cannot read links", "err", err)
				continue
			}
			s.claimAll()
			s.checkUsable()
		}
		if s.repace {
			s.repace = false
			tick.Reset(s.pace())
		}
		if s.dirty {
			s.dirty = false
			reports.set(s.report())
		}
	}
}

// pace is how often time is to be looked at; hardly ever by a node that is
// alone.
func (s *speaker) pace() time.Duration {
	if len(s.members.peers) == 0 && s.members.phase == ready {
		return time.Minute
	}
	return s.members.timing().interval / 2
}

// settle waits a moment for more changes of links: they come in bursts.
func settle(ctx context.Context, events <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
	select {
	case <-events:
	default:
	}
}

// setNodes takes in which nodes there are.
func (s *speaker) setNodes(ctx context.Context, nodes map[string]nodeFacts) {
	s.nodes = nodes
	peers := map[string][]netip.Addr{}
	for name, f := range nodes {
		if name != s.NodeName && len(f.addrs) > 0 {
			peers[name] = f.addrs
		}
	}
	if gone := s.members.setPeers(peers); len(gone) > 0 {
		s.lost(gone)
	}
	s.tune(ctx)
	s.dirty = true
}

// tune keeps the heartbeat socket on the node's own address. A node without
// peers has none.
func (s *speaker) tune(ctx context.Context) {
	var local netip.Addr
	if own := s.nodes[s.NodeName].addrs; len(own) > 0 && len(s.members.peers) > 0 {
		local = own[0]
	}
	if s.radio != nil && s.radio.local == local || s.radio == nil && !local.IsValid() {
		return
	}
	if s.radio != nil {
		s.radio.close()
		s.radio = nil
	}
	if !local.IsValid() {
		return
	}
	r, err := tune(ctx, s.NetNS, local, s.Port, s.Key, s.inbox, s.logger)
	if err != nil {
		if s.radioErr != err.Error() {
			s.logger.Warn("cannot listen for heartbeats, will try again", "err", err)
		}
		s.radioErr = err.Error()
		return
	}
	s.radio, s.radioErr = r, ""
}

// beat sends a heartbeat to everybody.
func (s *speaker) beat() {
	if s.radio == nil {
		return
	}
	data := s.next()
	for _, p := range s.members.peers {
		s.radio.send(data, p.addrs)
	}
}

func (s *speaker) next() []byte {
	s.seq++
	return beat{Node: s.NodeName, Phase: s.members.phase, Incarnation: s.incarnation, Seq: s.seq}.encode(s.Key)
}

// hear takes in a heartbeat.
func (s *speaker) hear(r received) {
	p := s.members.peers[r.beat.Node]
	if p == nil || len(s.Key) == 0 && !slices.Contains(p.addrs, r.from) {
		return // unsigned heartbeats must come from the node's own address
	}
	joined, left, greet := s.members.heard(r.beat, time.Now())
	if greet && s.radio != nil {
		s.radio.send(s.next(), p.addrs)
	}
	switch {
	case joined:
		s.logger.Info("node is alive", "peer", r.beat.Node)
		s.joined(r.beat.Node)
	case left:
		s.logger.Info("node leaves", "peer", r.beat.Node)
		s.lost([]string{r.beat.Node})
	}
}

// leave hands everything over to the others.
func (s *speaker) leave() {
	s.members.leave()
	for range 2 { // one may get lost
		s.beat()
	}
	for a := range s.claims {
		s.withdraw(a)
	}
}

func (s *speaker) close() {
	if s.radio != nil {
		s.radio.close()
	}
	for _, r := range s.responders {
		r.Close()
	}
}
