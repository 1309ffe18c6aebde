package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/announce/raw"
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
	// Monitor is told how it goes; nil: nobody is.
	Monitor *Monitor
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
	if o.Monitor == nil {
		o.Monitor = NewMonitor()
	}
	select {
	case <-o.Shared.synced:
	case <-ctx.Done():
		return nil
	}
	return newSpeaker(o, time.Now()).run(ctx)
}

func newSpeaker(o Options, now time.Time) *speaker {
	return &speaker{
		Options: o, logger: o.Logger.With("node", o.NodeName), open: openResponder,
		members: newMembers(o.NodeName, now), incarnation: uint64(now.UnixNano()),
		entries: map[netip.Addr]*Entry{}, winners: map[netip.Addr]string{}, claims: map[netip.Addr]*claim{},
		responders: map[responderKey]Responder{}, failures: map[responderKey]*failure{}, disputes: map[netip.Addr]*dispute{},
		inbox: make(chan received, 256), conflicts: make(chan conflict, 64),
		broken: make(chan responderKey), disputed: make(chan netip.Addr), done: make(chan struct{}),
	}
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

	open       func(l link, v4 bool, c raw.Config) (Responder, error)
	responders map[responderKey]Responder
	failures   map[responderKey]*failure
	recheck    bool      // there is a new one
	retry      time.Time // when failures are to be tried again
	broken     chan responderKey

	conflicts chan conflict
	disputes  map[netip.Addr]*dispute
	disputed  chan netip.Addr // disputes to judge

	pacer  pacer
	dirty  bool          // the report is to be written
	repace bool          // pace has changed
	done   chan struct{} // closed at the end
}

// reportPause is the least time between two reports made.
const reportPause = 100 * time.Millisecond

func (s *speaker) run(ctx context.Context) error {
	sub := s.Shared.subscribe()
	defer s.Shared.unsubscribe(sub)
	defer close(s.done)
	linkEvents, err := watchLinks(s.NetNS, s.done)
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
	var sent, vouched, reported time.Time
	var rewatch, flush <-chan time.Time
	defer s.Monitor.stopped()
	for {
		s.Monitor.turn(s.members.phase, s.pace())
		var again, retry <-chan time.Time
		if at, ok := s.pacer.next(); ok {
			again = time.After(time.Until(at))
		}
		if len(s.failures) > 0 {
			retry = time.After(time.Until(s.retry))
		}
		select {
		case <-ctx.Done():
			s.leave()
			reports.set(s.report())
			return nil
		case ask := <-s.Monitor.asks:
			ask <- s.snapshot()
		case k := <-s.broken:
			s.reopen(k)
		case <-retry:
			s.tryAgain()
		case x := <-s.conflicts:
			s.conflicting(x)
		case a := <-s.disputed:
			s.judge(a)
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
			s.announceDue()
		case _, ok := <-linkEvents:
			if !ok {
				// A burst of changes was more than the socket holds.
				s.logger.Warn("the watch for links broke off, and is begun anew")
				linkEvents, rewatch = nil, time.After(0)
				continue
			}
			settle(ctx, linkEvents)
			s.linksChanged()
		case <-rewatch:
			rewatch = nil
			if linkEvents, err = watchLinks(s.NetNS, s.done); err != nil {
				s.logger.Warn("cannot watch links, will try again", "err", err)
				linkEvents, rewatch = nil, time.After(time.Second)
			}
			s.linksChanged()
		case <-flush:
			flush = nil
		}
		if s.recheck {
			s.recheck = false
			s.checkUsable()
		}
		if s.repace {
			s.repace = false
			tick.Reset(s.pace())
		}
		// Changes come in bursts, and a report is long.
		switch wait := reportPause - time.Since(reported); {
		case !s.dirty:
		case wait <= 0:
			s.dirty, reported = false, time.Now()
			reports.set(s.report())
		case flush == nil:
			flush = time.After(wait)
		}
	}
}

// linksChanged takes in which links there are now.
func (s *speaker) linksChanged() {
	if err := s.readLinks(); err != nil {
		s.logger.Warn("announce: cannot read links", "err", err)
		return
	}
	s.claimAll()
	s.checkUsable()
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
	r, err := tune(ctx, s.NetNS, local, s.Port, s.Key, s.inbox, s.Monitor, s.logger)
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
	s.Monitor.sent.Add(float64(len(s.members.peers)))
}

func (s *speaker) next() []byte {
	s.seq++
	return beat{Node: s.NodeName, Phase: s.members.phase, Incarnation: s.incarnation, Seq: s.seq}.encode(s.Key)
}

// hear takes in a heartbeat.
func (s *speaker) hear(r received) {
	p := s.members.peers[r.beat.Node]
	switch {
	case p == nil:
		s.Monitor.refused.WithLabelValues("unknown_node").Inc()
		return
	case len(s.Key) == 0 && !slices.Contains(p.addrs, r.from):
		// Unsigned ones must come from the node's own address.
		s.Monitor.refused.WithLabelValues("wrong_source").Inc()
		return
	}
	s.Monitor.received.Inc()
	joined, left, greet := s.members.heard(r.beat, time.Now())
	if greet && s.radio != nil {
		s.radio.send(s.next(), p.addrs)
		s.Monitor.sent.Inc()
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
