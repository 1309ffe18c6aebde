package announce

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"

	"fairway.dev/fairway/internal/netns"
)

// DefaultPort is the UDP port that announcers send each other heartbeats to.
const DefaultPort = 7954

// magic begins every heartbeat: a name and a version.
var magic = []byte("fwhb\x01")

// beat is a heartbeat: "I am here".
type beat struct {
	Node  string
	Phase phase
	// Incarnation grows with every start of the sender, Seq with every beat.
	Incarnation, Seq uint64
}

// encode writes a heartbeat; with a key, its HMAC-SHA256 follows.
func (b beat) encode(key []byte) []byte {
	out := append([]byte(nil), magic...)
	out = append(out, byte(b.Phase))
	out = binary.BigEndian.AppendUint64(out, b.Incarnation)
	out = binary.BigEndian.AppendUint64(out, b.Seq)
	out = append(out, byte(len(b.Node)))
	out = append(out, b.Node...)
	if len(key) > 0 {
		out = append(out, sum(out, key)...)
	}
	return out
}

func sum(data, key []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(data)
	return h.Sum(nil)
}

// decode reads a heartbeat and checks its HMAC if there is a key.
func decode(data, key []byte) (beat, error) {
	const fixed = 1 + 8 + 8 + 1
	rest, ok := bytes.CutPrefix(data, magic)
	if !ok || len(rest) < fixed {
		return beat{}, errors.New("not a heartbeat")
	}
	n := len(magic) + fixed + int(rest[fixed-1])
	if len(data) < n {
		return beat{}, errors.New("heartbeat cut short")
	}
	if len(key) > 0 && !hmac.Equal(data[n:], sum(data[:n], key)) {
		return beat{}, errors.New("heartbeat signed with another key")
	}
	b := beat{
		Phase:       phase(rest[0]),
		Incarnation: binary.BigEndian.Uint64(rest[1:]),
		Seq:         binary.BigEndian.Uint64(rest[9:]),
		Node:        string(data[len(magic)+fixed : n]),
	}
	if b.Phase < joining || b.Phase > idle {
		return beat{}, fmt.Errorf("heartbeat with unknown phase %d", b.Phase)
	}
	return b, nil
}

// received is a heartbeat and where it came from.
type received struct {
	beat beat
	from netip.Addr
}

// radio sends and receives heartbeats on one of the node's addresses.
type radio struct {
	conn    net.PacketConn
	port    uint16
	key     []byte
	local   netip.Addr
	monitor *Monitor
	logger  *slog.Logger
	done    chan struct{}
}

// tune opens the node's address for heartbeats; what comes in goes to out until
// close. ns nil is this process's own namespace.
func tune(ctx context.Context, ns *netns.NS, local netip.Addr, port uint16, key []byte, out chan<- received, monitor *Monitor, logger *slog.Logger) (*radio, error) {
	r := &radio{port: port, key: key, local: local, monitor: monitor, logger: logger, done: make(chan struct{})}
	address := net.JoinHostPort(local.String(), strconv.Itoa(int(port)))
	var err error
	if ns != nil {
		r.conn, err = ns.ListenPacket(ctx, "udp", address)
	} else {
		r.conn, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for heartbeats on %s: %w", address, err)
	}
	go r.serve(ctx, out)
	return r, nil
}

func (r *radio) serve(ctx context.Context, out chan<- received) {
	defer close(r.done)
	buf := make([]byte, 512)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about a peer; it will fall silent by itself
		}
		b, err := decode(buf[:n], r.key)
		if err != nil {
			r.monitor.refused.WithLabelValues("malformed").Inc()
			r.logger.Debug("heartbeat refused", "from", from, "err", err)
			continue
		}
		ap, _ := netip.ParseAddrPort(from.String())
		select {
		case out <- received{b, ap.Addr().Unmap().WithZone("")}:
		case <-ctx.Done():
			return
		}
	}
}

// send sends a heartbeat to one of a peer's addresses: the first of our own
// family.
func (r *radio) send(data []byte, to []netip.Addr) {
	for _, a := range to {
		if a.Is4() == r.local.Is4() {
			// Errors are the peer's silence, which is what it is all about.
			_, _ = r.conn.WriteTo(data, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, r.port)))
			return
		}
	}
}

func (r *radio) close() {
	r.conn.Close()
	<-r.done
}
