package echo

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Options say what a [Server] listens on and how it behaves. The zero value
// listens on nothing; [DefaultOptions] is where to start.
type Options struct {
	HTTP Addrs // HTTP listeners
	TCP  Addrs // TCP listeners: one line on connect, then what is received is sent back
	UDP  Addrs // UDP listeners: every datagram is answered by one

	// Delay is waited before every answer.
	Delay time.Duration
	// FailureRate is the share of requests, 0 to 1, that fail: HTTP answers
	// 500, TCP closes without a word, UDP stays silent.
	FailureRate float64
	// SlowStart is how long /readyz says no after the start.
	SlowStart time.Duration
	// Drain is how long the server goes on accepting, no longer ready, after
	// it was told to stop: connections on their way still arrive.
	Drain time.Duration
	// Grace bounds the wait for requests under way after Drain.
	Grace time.Duration
	// JSON makes every answer JSON. Without it HTTP clients may still ask,
	// with "Accept: application/json" or ?format=json.
	JSON bool
	// LogRequests writes a line to the log for every request.
	LogRequests bool

	Identity Identity
}

// Identity is who the server says it is.
type Identity struct {
	Pod       string
	Namespace string
	Node      string
}

// IdentityFromEnv reads POD_NAME, POD_NAMESPACE and NODE_NAME, as a Pod fills
// them through the downward API. A missing name is the host name, which in a
// Pod is the Pod's name.
func IdentityFromEnv() Identity {
	id := Identity{Pod: os.Getenv("POD_NAME"), Namespace: os.Getenv("POD_NAMESPACE"), Node: os.Getenv("NODE_NAME")}
	if id.Pod == "" {
		id.Pod = os.Getenv("HOSTNAME")
	}
	if id.Pod == "" {
		id.Pod, _ = os.Hostname()
	}
	return id
}

// DefaultOptions listen on HTTP 8080, TCP 9090 and UDP 9090.
func DefaultOptions() Options {
	return Options{
		HTTP:  Addrs{":8080"},
		TCP:   Addrs{":9090"},
		UDP:   Addrs{":9090"},
		Drain: 500 * time.Millisecond,
		Grace: 25 * time.Second,
	}
}

// AddFlags adds a flag for every option to fs, with o's values as defaults.
func (o *Options) AddFlags(fs *flag.FlagSet) {
	fs.Var(&o.HTTP, "http", "answer HTTP on `ports` (8080 or 8080,8081 or 127.0.0.1:8080; none for nothing)")
	fs.Var(&o.TCP, "tcp", "answer TCP on `ports`")
	fs.Var(&o.UDP, "udp", "answer UDP on `ports`")
	fs.DurationVar(&o.Delay, "delay", o.Delay, "wait before every answer")
	fs.Float64Var(&o.FailureRate, "failure-rate", o.FailureRate, "share of requests that fail, 0 to 1")
	fs.DurationVar(&o.SlowStart, "slow-start", o.SlowStart, "how long /readyz says no after the start")
	fs.DurationVar(&o.Drain, "drain", o.Drain, "how long to go on accepting after SIGTERM")
	fs.DurationVar(&o.Grace, "grace", o.Grace, "how long to wait after that for requests under way")
	fs.BoolVar(&o.JSON, "json", o.JSON, "answer in JSON")
	fs.BoolVar(&o.LogRequests, "log-requests", o.LogRequests, "log every request")
	fs.StringVar(&o.Identity.Pod, "name", o.Identity.Pod, "the `name` to answer with (default $POD_NAME, else the host name)")
	fs.StringVar(&o.Identity.Node, "node", o.Identity.Node, "the node's `name` to answer with (default $NODE_NAME)")
}

// Validate says what is wrong with the options, naming the flag.
func (o *Options) Validate() error {
	var errs []error
	if o.FailureRate < 0 || o.FailureRate > 1 {
		errs = append(errs, fmt.Errorf("--failure-rate %v: must be between 0 and 1", o.FailureRate))
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"delay", o.Delay}, {"slow-start", o.SlowStart}, {"drain", o.Drain}, {"grace", o.Grace}} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("--%s %v: must not be negative", d.flag, d.value))
		}
	}
	if len(o.HTTP)+len(o.TCP)+len(o.UDP) == 0 {
		errs = append(errs, errors.New("nothing to listen on: give --http, --tcp or --udp a port"))
	}
	return errors.Join(errs...)
}

// Addrs are listen addresses (host:port, the host often empty). As a
// flag.Value they are read from a comma-separated list of ports and
// addresses; "none" and the empty string mean no address.
type Addrs []string

func (a Addrs) String() string { return strings.Join(a, ",") }

// Set replaces the addresses.
func (a *Addrs) Set(s string) error {
	*a = nil
	if s == "" || s == "none" {
		return nil
	}
	for _, part := range strings.Split(s, ",") {
		addr := part
		if !strings.Contains(part, ":") {
			addr = ":" + part
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return fmt.Errorf("%q is neither a port nor an address:port", part)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			return fmt.Errorf("%q: the port must be a number from 0 to 65535", part)
		}
		*a = append(*a, addr)
	}
	return nil
}

// Type is the flag's type in cobra's help.
func (a *Addrs) Type() string { return "ports" }
