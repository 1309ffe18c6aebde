package nft

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
)

// cluster is a small random cluster: what the API would say.
type cluster struct {
	random
	services map[state.Name]*state.Service
	slices   map[string]*state.Slice
	view     state.View
}

var clusterNames = []state.Name{{Namespace: "a", Name: "x"}, {Namespace: "a", Name: "y"}, {Namespace: "b", Name: "x"}, {Namespace: "b", Name: "y"}}

func (c *cluster) addr(v6 bool, third, last int) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 5: byte(third), 15: byte(last)})
	}
	return netip.AddrFrom4([4]byte{10, 96, byte(third), byte(last)})
}

// change changes one object and tells the table.
func (c *cluster) change(t *state.Table) string {
	switch n := c.IntN(10); {
	case n < 4:
		return c.changeService(t)
	case n < 9:
		return c.changeSlice(t)
	}
	c.view.Zone = []string{"", "za", "zb"}[c.IntN(3)]
	c.view.NodeName = []string{"n1", "n2"}[c.IntN(2)]
	c.view.MasqueradeAll = c.chance(30)
	t.SetView(c.view)
	return fmt.Sprintf("view %+v", c.view)
}

func (c *cluster) changeService(t *state.Table) string {
	i := c.IntN(len(clusterNames))
	n := clusterNames[i]
	if c.services[n] != nil && c.chance(25) {
		delete(c.services, n)
		t.DeleteService(n)
		return "delete Service " + n.String()
	}
	s := &state.Service{Name: n, ExternalLocal: c.chance(40), InternalLocal: c.chance(40)}
	for _, v6 := range []bool{false, true} {
		if c.chance(70) {
			s.ClusterIPs = append(s.ClusterIPs, c.addr(v6, 0, i+1))
		}
		if c.chance(30) { // shared between Services: they contend for it
			s.LoadBalancerIPs = append(s.LoadBalancerIPs, c.addr(v6, 1, 1+c.IntN(2)))
		}
		if c.chance(20) {
			s.ExternalIPs = append(s.ExternalIPs, c.addr(v6, 1, 1+c.IntN(2)))
		}
		if c.chance(20) {
			s.SourceRanges = append(s.SourceRanges, netip.PrefixFrom(c.addr(v6, 9, 0), []int{24, 16, 8}[c.IntN(3)]).Masked())
		}
	}
	for j, p := range []state.ServicePort{{Name: "web", Port: 80, Proto: state.TCP}, {Name: "dns", Port: 53, Proto: state.UDP}, {Name: "sig", Port: 53, Proto: state.SCTP}} {
		if c.chance(60) {
			if c.chance(50) {
				p.NodePort = uint16(30000 + 10*i + j)
			}
			s.Ports = append(s.Ports, p)
		}
	}
	if c.chance(25) {
		s.Affinity = time.Duration(1+c.IntN(2)) * time.Minute
	}
	c.services[n] = s
	t.SetService(s)
	return fmt.Sprintf("set %+v", *s)
}

func (c *cluster) changeSlice(t *state.Table) string {
	name := []string{"s1", "s2", "s3", "s4", "s5"}[c.IntN(5)]
	old := c.slices[name]
	if old != nil && c.chance(25) {
		delete(c.slices, name)
		t.DeleteSlice(old)
		return "delete slice " + name
	}
	owner := clusterNames[c.IntN(2)] // slices keep their namespace
	if c.chance(50) && (old == nil || old.Namespace == "b") {
		owner = clusterNames[2+c.IntN(2)]
	}
	if old != nil && old.Namespace != owner.Namespace {
		owner = old.Owner()
	}
	s := &state.Slice{Namespace: owner.Namespace, Name: name, Service: owner.Name, V6: c.chance(50),
		Ports: []state.SlicePort{{Name: "web", Port: 8080, Proto: state.TCP}, {Name: "dns", Port: 5353, Proto: state.UDP}, {Name: "sig", Port: 5353, Proto: state.SCTP}}}
	hints := []*state.Hints{nil, {Zones: []string{"za"}}, {Zones: []string{"zb"}, Nodes: []string{"n1"}}}
	hint := hints[c.IntN(3)]
	for range []int{0, 1, 2, 4, 7}[c.IntN(5)] {
		s.Endpoints = append(s.Endpoints, state.Endpoint{Addr: c.addr(s.V6, 7, 1+c.IntN(12)), Node: []string{"", "n1", "n2"}[c.IntN(3)],
			Hints: hint, Conditions: []state.Conditions{state.Ready | state.Serving, state.Ready | state.Serving, state.Serving | state.Terminating, state.Terminating, 0}[c.IntN(5)]})
	}
	c.slices[name] = s
	t.SetSlice(old, s)
	return fmt.Sprintf("set %+v", *s)
}

// TestPipeline: Services, slices and the node change at random, several at a
// time; after each sync the kernel holds what a programmer that starts from
// nothing would make it hold. (That the table is what one built from nothing
// would be is package state's own model test.)
func TestPipeline(t *testing.T) {
	ctx := context.Background()
	seeds, _ := strconv.ParseUint(os.Getenv("FAIRWAY_MODEL_SEEDS"), 10, 32)
	for seed := range max(seeds, 4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			l, p := bareNode(t)
			c := &cluster{random: random{rand.New(rand.NewPCG(seed, 2))}, services: map[state.Name]*state.Service{}, slices: map[string]*state.Slice{}, view: state.View{NodeName: "n1"}}
			table := state.NewTable(c.view)
			l.ok(p.Configure(ctx, labFacts))
			l.ok(p.Replace(ctx, table.All()))
			for i := range 40 {
				what := fmt.Sprint("step ", i, ":")
				for range 1 + c.IntN(3) {
					what += "\n" + c.change(table)
				}
				l.ok(p.Apply(ctx, table.Sync().Diff))
				_, scratch := bareNode(t)
				l.ok(scratch.Configure(ctx, labFacts))
				l.ok(scratch.Replace(ctx, table.All()))
				sameTable(t, what, p, scratch)
				scratch.Close()
				if t.Failed() {
					return
				}
			}
		})
	}
}
