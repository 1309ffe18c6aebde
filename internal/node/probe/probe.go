// Package probe asks containers how they are.
//
// In goes a probe's specification and the ways to reach the container (a dialer
// in its node's network, an exec), out come changes of mind: success or failure
// after the thresholds. It keeps nothing and talks to nobody but the container.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	kprobe "k8s.io/kubernetes/pkg/probe"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
)

// Target is how to reach a container.
type Target struct {
	IP        string // of the Pod
	Container *v1.Container
	// Dial connects from the container's node.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Exec runs a command in the container and returns its exit code and output.
	Exec func(ctx context.Context, cmd []string) (code int, output string, err error)
}

// Once asks once. It answers with success and what the container said.
func Once(ctx context.Context, h v1.ProbeHandler, timeout time.Duration, t Target) (ok bool, message string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case h.Exec != nil:
		code, out, err := t.Exec(ctx, h.Exec.Command)
		if err != nil {
			if ctx.Err() != nil {
				return false, fmt.Sprintf("command timed out after %v", timeout)
			}
			return false, err.Error()
		}
		return code == 0, out
	case h.HTTPGet != nil:
		return t.http(h.HTTPGet, timeout)
	case h.TCPSocket != nil:
		port, err := kprobe.ResolveContainerPort(h.TCPSocket.Port, t.Container)
		if err != nil {
			return false, err.Error()
		}
		host := h.TCPSocket.Host
		if host == "" {
			host = t.IP
		}
		c, err := t.Dial(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return false, err.Error()
		}
		c.Close()
		return true, ""
	case h.GRPC != nil:
		return t.grpc(ctx, h.GRPC)
	}
	return false, "probe has no handler"
}

func (t Target) http(get *v1.HTTPGetAction, timeout time.Duration) (bool, string) {
	req, err := httpprobe.NewRequestForHTTPGetAction(get, t.Container, t.IP, "probe")
	if err != nil {
		return false, err.Error()
	}
	client := &http.Client{
		Timeout:       timeout,
		CheckRedirect: httpprobe.RedirectChecker(false),
		Transport: &http.Transport{DialContext: t.Dial, DisableKeepAlives: true, DisableCompression: true, Proxy: nil,
			// As upstream: a probe asks whether the server answers, not who it is.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec
	}
	res, msg, err := httpprobe.DoHTTPProbe(req, client)
	if err != nil {
		return false, err.Error()
	}
	return res == kprobe.Success || res == kprobe.Warning, msg
}

func (t Target) grpc(ctx context.Context, g *v1.GRPCAction) (bool, string) {
	addr := net.JoinHostPort(t.IP, strconv.Itoa(int(g.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/fairway"), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return t.Dial(ctx, "tcp", a) }))
	if err != nil {
		return false, err.Error()
	}
	defer conn.Close()
	service := ""
	if g.Service != nil {
		service = *g.Service
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(metadata.NewOutgoingContext(ctx, metadata.MD{}), &grpc_health_v1.HealthCheckRequest{Service: service})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return false, fmt.Sprintf("this server does not implement the grpc health protocol (grpc.health.v1.Health): %v", err)
	case status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
		return false, fmt.Sprintf("timeout: failed to connect service %q", addr)
	case err != nil:
		return false, fmt.Sprintf("error: health rpc probe failed: %v", err)
	case resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return false, fmt.Sprintf("service unhealthy (responded with %q)", resp.GetStatus())
	}
	return true, "service healthy"
}

// Watch asks again and again until ctx ends, beginning initialDelay after
// started. decided is called with the first answer that the thresholds allow
// and with every one that changes it; failed with each single failure. Both are
// called from one goroutine.
//
// An eager watch does not leave a starting container waiting for a whole
// period: until the first success it asks soon and then less and less often,
// counting (and telling) no more failures than the period would bring.
func Watch(ctx context.Context, p *v1.Probe, eager bool, t Target, started time.Time, decided func(ok bool, message string), failed func(message string)) {
	period := seconds(p.PeriodSeconds, 10)
	timeout := seconds(p.TimeoutSeconds, 1)
	successes, failures := max(p.SuccessThreshold, 1), max(p.FailureThreshold, 1)
	if p.FailureThreshold == 0 {
		failures = 3
	}
	first := time.Until(started.Add(time.Duration(p.InitialDelaySeconds) * time.Second))
	if time.Since(started) > period {
		// Taken over: many containers at once should not all be asked in one moment.
		first = max(first, time.Duration(rand.Int64N(int64(period))))
	}
	var run int32
	var last, told, any bool
	counted := started // when the last failure was that counts
	if !eager {
		// A process needs a moment; asking in the very first one only tells that.
		first = max(first, time.Until(started.Add(min(period, time.Second))))
	}
	timer := time.NewTimer(max(first, 0))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		begin := time.Now()
		ok, msg := Once(ctx, p.ProbeHandler, timeout, t)
		if ctx.Err() != nil {
			return
		}
		wait := period - time.Since(begin)
		if eager = eager && !ok; eager {
			wait = min(wait, max(50*time.Millisecond, time.Since(started)/4))
			if begin.Sub(counted) < period {
				timer.Reset(max(wait, 10*time.Millisecond))
				continue
			}
			counted = begin
		}
		if ok != last {
			run = 0
		}
		run++
		last = ok
		if !ok {
			failed(msg)
		}
		if (ok && run >= successes || !ok && run >= failures) && (!any || told != ok) {
			any, told = true, ok
			decided(ok, msg)
		}
		timer.Reset(max(wait, 10*time.Millisecond))
	}
}

func seconds(n int32, fallback int64) time.Duration {
	if n <= 0 {
		return time.Duration(fallback) * time.Second
	}
	return time.Duration(n) * time.Second
}
