package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/proxy/state"
)

// DefaultTable is the name of the table where Config.Table is empty. Its
// family is inet.
const DefaultTable = "fairway"

// Config is what New needs.
type Config struct {
	// NetNS is the network namespace to program; nil is the process's own. It
	// must stay open until Close.
	NetNS *netns.NS
	// Table is the table's name, DefaultTable if empty. Everything in the inet
	// table of that name is the programmer's: what it did not make, it deletes.
	Table  string
	Logger *slog.Logger
}

// Programmer makes one network namespace hold a table of frontends. It
// implements proxy.Programmer, which says how to call it; its methods are safe
// for concurrent use, but the order of calls is the caller's matter.
type Programmer struct {
	log    *slog.Logger
	ns     *netns.NS
	table  string
	layout string // part of every set's name; tests change it to stand for another build

	mu        sync.Mutex
	c         *conn // nil: to be opened
	closed    bool
	node      state.NodeFacts
	localhost [2]netip.Addr // what stands for a loopback source; see localhost.go
	forget    bool          // other interfaces are the Pods' now: who came in by the old ones?
	ready     bool          // what follows is what the kernel holds
	deep      bool          // something went wrong: compare every element, trust no digest
	fresh     bool          // that failed too: build anew
	held      map[state.Key]entry
	gens      [2]*generation
	stamp     [2]uint64          // sum of the stamps of held
	classes   [2]map[class]int   // the classes the kernel has chains for: how many frontends use each
	clusterIP map[netip.Addr]int // how many frontends each cluster address has
	touched   map[netip.Addr]int // what that was before this diff
	ch        changes
	b         *batch

	monitor  *monitor
	done     chan struct{} // closed by Close
	watchers sync.WaitGroup
}

// entry is a frontend the kernel holds.
type entry struct {
	f   *state.Frontend
	off int // scratch: where compare keeps the frontend's bits
}

// New opens what it needs to program and to watch the namespace; it programs
// nothing yet.
func New(cfg Config) (*Programmer, error) {
	p := &Programmer{log: cfg.Logger, ns: cfg.NetNS, table: cfg.Table, done: make(chan struct{})}
	if p.table == "" {
		p.table = DefaultTable
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.b = newBatch(p.table)
	p.clear()
	if err := p.dial(); err != nil {
		return nil, err
	}
	m, err := newMonitor(p)
	if err != nil {
		p.c.close()
		return nil, err
	}
	p.monitor = m
	if err := p.watchAddrs(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Programmer) clear() {
	p.held = map[state.Key]entry{}
	p.clusterIP = map[netip.Addr]int{}
	for i := range p.classes {
		p.classes[i] = map[class]int{}
	}
}

// dial opens the connection anew if an error has closed it.
func (p *Programmer) dial() error {
	if p.closed {
		return errors.New("nft: programmer is closed")
	}
	if p.c != nil {
		return nil
	}
	c, err := dial(p.ns)
	if err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	p.c = c
	if p.monitor != nil {
		p.monitor.own(c.portID)
	}
	return nil
}

// fail drops the connection, which may have answers left in it, and the belief
// to know what the kernel holds.
func (p *Programmer) fail(err error) error {
	p.ready, p.deep = false, true
	if p.c != nil {
		p.c.close()
		p.c = nil
	}
	return fmt.Errorf("nft: %w", err)
}

// Close gives up the sockets. The table stays.
func (p *Programmer) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	if p.c != nil {
		p.c.close()
		p.c = nil
	}
	p.mu.Unlock()
	p.monitor.close()
	close(p.done)
	p.watchers.Wait()
	return nil
}

// Drift receives a value when somebody else has changed the table.
func (p *Programmer) Drift() <-chan struct{} { return p.monitor.drift }

// Configure sets the node's facts, and programs them if a Replace has
// succeeded before.
func (p *Programmer) Configure(ctx context.Context, node state.NodeFacts) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	same := p.node.Equal(node)
	p.forget = p.forget || !slices.Equal(p.node.PodNetwork.Interfaces, node.PodNetwork.Interfaces)
	p.node = node
	if !p.ready || same {
		return nil
	}
	if err := p.dial(); err != nil {
		return err
	}
	p.ch.reset()
	if err := p.install(ctx, nil, p.needs(), [2]bool{}); err != nil {
		return p.fail(fmt.Errorf("configure table %s: %w", p.table, err))
	}
	return nil
}

// Apply programs a diff in one transaction.
func (p *Programmer) Apply(ctx context.Context, diff state.Diff) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if !p.ready {
		return errors.New("nft: apply: no Replace has succeeded since the start or the last error")
	}
	if err := p.dial(); err != nil {
		return err
	}
	p.ch.reset()
	var made [2][]class
	for i := range diff.Set {
		f := diff.Set[i]
		fam := familyOf(f.Key.Addr)
		e, had := p.held[f.Key]
		p.ch.frontend(e.f, f)
		p.held[f.Key] = entry{f: f}
		if had {
			p.classes[fam][classOf(e.f)]--
			p.refClusterIP(e.f, -1)
		}
		p.refClusterIP(f, 1)
		c := classOf(f)
		if _, there := p.classes[fam][c]; !there {
			made[fam] = append(made[fam], c)
		}
		p.classes[fam][c]++
	}
	for _, key := range diff.Remove {
		e, had := p.held[key]
		if !had {
			continue
		}
		p.ch.frontend(e.f, nil)
		p.classes[familyOf(key.Addr)][classOf(e.f)]--
		delete(p.held, key)
		p.refClusterIP(e.f, -1)
	}
	p.settleClusterIPs()
	if err := p.applyChanges(ctx, made); err != nil {
		return p.fail(fmt.Errorf("apply a change to table %s: %w", p.table, err))
	}
	return nil
}

// refClusterIP counts a frontend of a cluster address in or out. The set is
// changed by settleClusterIPs.
func (p *Programmer) refClusterIP(f *state.Frontend, n int) {
	if !f.ClusterIP {
		return
	}
	a := f.Key.Addr
	if p.touched == nil {
		p.touched = map[netip.Addr]int{}
	}
	if _, ok := p.touched[a]; !ok {
		p.touched[a] = p.clusterIP[a]
	}
	if p.clusterIP[a] += n; p.clusterIP[a] == 0 {
		delete(p.clusterIP, a)
	}
}

// settleClusterIPs records which cluster addresses came and went since the
// last call.
func (p *Programmer) settleClusterIPs() {
	for a, before := range p.touched {
		switch now := p.clusterIP[a]; {
		case before == 0 && now > 0:
			p.ch.put(false, familyOf(a), clusterIPs, a.AsSlice(), nil)
		case before > 0 && now == 0:
			p.ch.put(true, familyOf(a), clusterIPs, a.AsSlice(), nil)
		}
	}
	clear(p.touched)
}

// spareClasses is how many classes may be without a frontend before their
// chains are deleted: they come back soon, mostly.
const spareClasses = 32

// applyChanges commits p.ch together with the chains of new classes.
func (p *Programmer) applyChanges(ctx context.Context, made [2][]class) error {
	var grow [2]bool
	for i := range families {
		for k := range kinds {
			// Deleted elements count until the transaction is committed.
			size := p.gens[i].sets[k].size
			grow[i] = grow[i] || size != 0 && p.gens[i].count[k]+p.ch.add[i][k].n > int(size)
		}
	}
	if grow[0] || grow[1] {
		return p.install(ctx, nil, p.needs(), grow)
	}
	b := p.b
	b.reset()
	for i, f := range families {
		p.addClasses(b, f, p.gens[i], made[i])
		if p.ch.stamp[i] != 0 {
			p.ch.put(true, i, stamp, stampKey(p.stamp[i]), nil)
			p.stamp[i] += p.ch.stamp[i]
			p.ch.put(false, i, stamp, stampKey(p.stamp[i]), nil)
		}
		p.ch.emit(b, i, p.gens[i])
		p.dropSpareClasses(b, i)
	}
	if b.empty() {
		return nil
	}
	if err := p.c.commit(b); err != nil {
		return err
	}
	for i := range families {
		p.gens[i].counted(&p.ch, i)
	}
	return nil
}

// stampKey is a table's stamp as the only element of its set.
func stampKey(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func (g *generation) counted(ch *changes, f int) {
	for k := range kinds {
		g.count[k] += ch.add[f][k].n - ch.del[f][k].n
	}
}

// addClasses makes the chains of classes and lets the classes map lead there.
func (p *Programmer) addClasses(b *batch, f *family, g *generation, made []class) {
	var elems []byte
	for _, c := range made {
		for _, chain := range p.classChains(f, g, c) {
			b.newChain(chain)
			for _, r := range chain.rules {
				b.newRule(chain.name, r)
			}
		}
		elems = appendGoto(elems, c.key(), c.chain(p, f))
	}
	b.elems(false, p.name(setClasses, f), elems, len(made))
}

// dropSpareClasses deletes the chains of classes nobody uses, if there are many.
func (p *Programmer) dropSpareClasses(b *batch, i int) {
	if len(p.classes[i]) <= spareClasses {
		return
	}
	var spare []class
	for c, n := range p.classes[i] {
		if n == 0 {
			spare = append(spare, c)
		}
	}
	if len(spare) <= spareClasses {
		return
	}
	f := families[i]
	var elems []byte
	for _, c := range spare {
		elems = appendElem(elems, c.key(), nil, 0)
		delete(p.classes[i], c)
	}
	b.elems(true, p.name(setClasses, f), elems, len(spare))
	for _, c := range spare {
		b.deleteChain(c.chain(p, f))
		if c.has(flagInside) {
			b.deleteChain(c.inner(p, f))
		}
	}
}

// Replace makes the kernel hold exactly these frontends.
func (p *Programmer) Replace(ctx context.Context, all iter.Seq[*state.Frontend]) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.dial(); err != nil {
		return err
	}
	p.ready = false
	p.clear()
	for f := range all {
		p.held[f.Key] = entry{f: f}
		if f.ClusterIP {
			p.clusterIP[f.Key.Addr]++
		}
	}
	clear(p.touched)
	if err := p.replace(ctx); err != nil {
		p.fresh = true // if correcting what is there fails, do without it
		return p.fail(fmt.Errorf("replace table %s: %w", p.table, err))
	}
	p.ready = true
	return nil
}
