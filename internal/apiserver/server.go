package apiserver

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/controlplane/apiserver/options"

	"fairway.dev/fairway/internal/apiserver/etcd"
	"fairway.dev/fairway/internal/apiserver/pki"
)

// Server is a running API server. Its methods may be called from several
// goroutines at once.
type Server struct {
	url      string
	ca       *pki.Authority
	tokenKey crypto.Signer
	listener *multiListener
	store    *etcd.Server // nil if it is an outside one

	cancel  context.CancelFunc
	started chan struct{} // closed when /readyz was ok for the first time
	done    chan struct{}
	err     error // valid once done is closed
}

// instances numbers the servers of this process: upstream keys shared things by the
// URL of the store.
var instances atomic.Int64

// Start starts a server and returns when its /readyz is ok. The server runs
// until ctx ends or Shutdown is called; Done tells when it has stopped.
// Start's errors are for people to read: a taken port, a directory in use.
func Start(ctx context.Context, o Options) (*Server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkEtcdServers(o.EtcdServers); err != nil {
		return nil, err
	}
	if o.EvictAfter > 0 {
		if err := setEvictAfter(o.EvictAfter); err != nil {
			return nil, err
		}
	}
	routeKlog(o.Logger)
	if err := setGates(); err != nil {
		return nil, fmt.Errorf("feature gates: %w", err)
	}

	unlock, err := lockDir(o.DataDir)
	if err != nil {
		return nil, err
	}
	cleanup := []func(){unlock}
	undo := func() {
		for i := len(cleanup) - 1; i >= 0; i-- {
			cleanup[i]()
		}
	}

	s, o, upstream, sec, err := prepare(ctx, o, &cleanup)
	if err != nil {
		undo()
		return nil, err
	}
	// runCtx ends when the server is to stop, serving when it may: see holdBack.
	runCtx, cancelCause := context.WithCancelCause(ctx)
	cancel := func() { cancelCause(nil) }
	s.cancel = cancel
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	fail := func(err error) { cancelCause(failure{err}) }
	chain, err := buildChain(serving, o, upstream, s.ca, sec, fail)
	if err != nil {
		cancel()
		stop()
		undo()
		return nil, fmt.Errorf("build the API server: %w", err)
	}
	go func() {
		defer close(s.done)
		defer undo()
		defer stop()
		defer cancel()
		s.err = chain.run(serving)
		if cause := (failure{}); errors.As(context.Cause(runCtx), &cause) {
			s.err = errors.Join(cause.error, s.err)
		}
	}()
	go s.holdBack(runCtx, stop)
	if s.store != nil {
		go func() {
			select {
			case <-s.store.Stopped():
				fail(errStoreStopped)
			case <-runCtx.Done():
			}
		}()
	}
	ready := make(chan error, 1)
	go func() { ready <- s.waitReady(chain.loopback) }()
	select {
	case err = <-ready:
	case <-runCtx.Done():
		if err = ctx.Err(); err != nil {
			err = fmt.Errorf("the API server is not ready yet: %w", err)
		}
	}
	if err == nil && runCtx.Err() == nil {
		return s, nil
	}
	cancel()
	<-s.done
	return nil, errors.Join(err, s.err)
}

// startLimit is how long a server that is told to stop may take to get through its start first.
const startLimit = 20 * time.Second

// failure is why a server has to stop that was not told to.
type failure struct{ error }

// holdBack calls stop when ctx has ended, but not in the middle of a start that can succeed.
// Upstream's hooks, which run then, are not made to be interrupted: one that
// fails, if only because its context ended, ends the process (klog.Fatal), with whatever else runs in it.
func (s *Server) holdBack(ctx context.Context, stop context.CancelFunc) {
	<-ctx.Done()
	if !errors.As(context.Cause(ctx), new(failure)) {
		select {
		case <-s.started:
		case <-s.done:
		case <-time.After(startLimit):
		}
	}
	stop()
}

// errStoreStopped is why a server ends whose store did, such as for a full disk.
var errStoreStopped = errors.New("the embedded store stopped by itself; its messages say why")

// prepare opens what the server stands on: keys, addresses and the store. What
// it opens it adds to cleanup, also when it fails.
func prepare(ctx context.Context, o Options, cleanup *[]func()) (*Server, Options, *options.Options, secrets, error) {
	fail := func(err error) (*Server, Options, *options.Options, secrets, error) {
		return nil, o, nil, secrets{}, err
	}
	l, err := listen(o.Listen)
	if err != nil {
		return fail(err)
	}
	*cleanup = append(*cleanup, func() { l.Close() })
	if !o.AdvertiseAddress.IsValid() {
		o.AdvertiseAddress = defaultAdvertise(l.addrs(), o.ServiceCIDRs)
	}
	url, err := serverURL(l.Addr())
	if err != nil {
		return fail(err)
	}
	ca, sec, err := makeSecrets(o, l)
	if err != nil {
		return fail(fmt.Errorf("keys and certificates: %w", err))
	}
	s := &Server{url: url, ca: ca, tokenKey: sec.tokenSigner, listener: l, started: make(chan struct{}), done: make(chan struct{})}
	var store dialer
	if len(o.EtcdServers) == 0 {
		embedded, err := etcd.Start(ctx, filepath.Join(o.DataDir, "etcd"), o.Logger)
		if err != nil {
			return fail(err)
		}
		*cleanup = append(*cleanup, func() { embedded.Close() })
		s.store = embedded
		store, o.embedded = embedded, true
		o.EtcdServers = []string{fmt.Sprintf("http://embedded-%d:2379", instances.Add(1))}
	}
	return s, o, upstreamOptions(o, l, store, sec), sec, nil
}

// makeSecrets loads what has to last and signs anew what has not.
func makeSecrets(o Options, l *multiListener) (*pki.Authority, secrets, error) {
	certs := filepath.Join(o.DataDir, "certs") // not in PKIDir, which servers may share
	for _, dir := range []string{o.PKIDir, certs} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, secrets{}, err
		}
	}
	lasting := func(name string) string { return filepath.Join(o.PKIDir, name) }
	anew := func(name string) string { return filepath.Join(certs, name) }
	sec := secrets{
		clientCA: lasting("ca.crt"), frontProxyCA: lasting("front-proxy-ca.crt"),
		tokenKey: lasting("sa.key"), tokenPublicKey: lasting("sa.pub"),
		servingCert: anew("apiserver.crt"), servingKey: anew("apiserver.key"),
		frontProxyCert: anew("front-proxy-client.crt"), frontProxyKey: anew("front-proxy-client.key"),
		kubeletCert: anew("apiserver-kubelet-client.crt"), kubeletKey: anew("apiserver-kubelet-client.key"),
	}
	ca, err := pki.LoadOrCreateAuthority(o.PKIDir, "ca", "fairway")
	if err != nil {
		return nil, sec, err
	}
	frontProxy, err := pki.LoadOrCreateAuthority(o.PKIDir, "front-proxy-ca", "fairway front proxy")
	if err != nil {
		return nil, sec, err
	}
	if sec.tokenSigner, err = pki.LoadOrCreateKey(sec.tokenKey, sec.tokenPublicKey); err != nil {
		return nil, sec, err
	}
	names, addrs := servingNames(o, l.addrs())
	serving, err1 := ca.Server("kube-apiserver", names, addrs)
	kubelet, err2 := ca.Client(KubeletClientUser, []string{"system:masters"})
	front, err3 := frontProxy.Client(frontProxyUser, nil)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, sec, err
	}
	return ca, sec, errors.Join(
		serving.Write(sec.servingCert, sec.servingKey),
		kubelet.Write(sec.kubeletCert, sec.kubeletKey),
		front.Write(sec.frontProxyCert, sec.frontProxyKey),
	)
}

// readyPoll is how often waitReady asks.
const readyPoll = 10 * time.Millisecond

// waitReady returns when the server says that it is ready, and when it has stopped.
func (s *Server) waitReady(loopback *rest.Config) error {
	client, err := rest.HTTPClientFor(loopback)
	if err != nil {
		return err
	}
	for {
		if resp, err := client.Get(loopback.Host + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				close(s.started)
				return nil
			}
		}
		select {
		case <-time.After(readyPoll):
		case <-s.done:
			return errors.New("the API server stopped while it started")
		}
	}
}

// URL returns where clients on this machine reach the server.
func (s *Server) URL() string { return s.url }

// Listen serves on another address, such as one that came up after Start. The
// serving certificate is only for the addresses known at Start: name later
// ones in Options.SANs.
func (s *Server) Listen(address string) error { return s.listener.add(address) }

// Done is closed when the server has stopped and its data directory is free.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err returns why the server stopped: nil before it has, and after an orderly end.
func (s *Server) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Shutdown stops the server: it takes no more requests, lets those under way
// finish, closes the store, and returns.
func (s *Server) Shutdown() {
	s.cancel()
	<-s.done
}
