package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/netns"
)

// serve serves the API with TLS and HTTP/2 on the namespace's loopback and
// returns a kubeconfig for it.
func serve(ctx context.Context, ns *netns.NS, api *fakeapi.Server, path string) (kubeconfig string, err error) {
	cert, pemCert, err := certificate()
	if err != nil {
		return "", err
	}
	l, err := ns.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: api, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ErrorLog: log.New(io.Discard, "", 0)}
	go srv.ServeTLS(l, "", "")
	kubeconfig = path + ".kubeconfig"
	if err := os.WriteFile(path+".pem", pemCert, 0o600); err != nil {
		return "", err
	}
	return kubeconfig, os.WriteFile(kubeconfig, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s", certificate-authority: %s}}]
users: [{name: u, user: {token: none}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, l.Addr(), path+".pem"), 0o600)
}

func certificate() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func handle(ns *netns.NS) (h *netlink.Handle, err error) {
	err = ns.Do(func() error { h, err = netlink.NewHandle(); return err })
	return h, err
}

func linkUp(ns *netns.NS, name string) error {
	h, err := handle(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkSetUp(l)
}

// Addresses of the cable between the node and the host of the server.
const (
	nodeAddr   = "198.18.0.1"
	serverAddr = "198.18.0.2"
)

// connections measures connecting to a server in another namespace, directly
// and through a ClusterIP, in turns.
func (r *result) connections(ctx context.Context, ns *netns.NS, api *fakeapi.Server, s size, n int) error {
	name := fmt.Sprintf("fw-b-%d-srv", os.Getpid())
	host, drop, err := newNode(name)
	if err != nil {
		return err
	}
	defer drop()
	if err := cable(ns, host); err != nil {
		return err
	}
	// Two ports of one server: through the ClusterIP must not meet what
	// connection tracking still remembers of the direct connections.
	for _, port := range []string{":8080", ":8081"} {
		l, err := host.Listen(ctx, "tcp4", serverAddr+port)
		if err != nil {
			return err
		}
		defer l.Close()
		go accept(l)
	}
	// One more Service, whose endpoint is the server.
	i := s.services
	svc := service(i)
	sl := slice(size{1, 1}, i, 0, 0)
	sl.Endpoints[0].Addresses = []string{serverAddr}
	api.Set(fakeapi.Services, svc)
	api.Set(fakeapi.EndpointSlices, sl)
	through, direct := clusterIP(i).String()+":80", serverAddr+":8081"
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err = connect(ns, through, 1); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("ClusterIP %s: %w", through, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	const turn = 200
	for done := 0; done < n; done += turn {
		d, err := connect(ns, direct, turn)
		if err != nil {
			return fmt.Errorf("direct: %w", err)
		}
		t, err := connect(ns, through, turn)
		if err != nil {
			return fmt.Errorf("through the ClusterIP: %w", err)
		}
		r.direct, r.through = append(r.direct, d...), append(r.through, t...)
	}
	return nil
}

// accept takes connections and keeps each until its client closes it.
func accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { io.Copy(io.Discard, c); c.Close() }()
	}
}

// connect connects n times and returns how long each took.
func connect(ns *netns.NS, address string, n int) (out []time.Duration, err error) {
	a, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return nil, err
	}
	sa := &syscall.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())}
	err = ns.Do(func() error {
		for range n {
			fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
			began := time.Now()
			err = syscall.Connect(fd, sa)
			took := time.Since(began)
			syscall.Close(fd)
			if err == syscall.EINTR {
				continue
			}
			if err != nil {
				return fmt.Errorf("connect %s: %w", address, err)
			}
			out = append(out, took)
		}
		return nil
	})
	return out, err
}

// cable connects two namespaces.
func cable(a, b *netns.NS) error {
	ha, err := handle(a)
	if err != nil {
		return err
	}
	defer ha.Close()
	hb, err := handle(b)
	if err != nil {
		return err
	}
	defer hb.Close()
	la := netlink.NewLinkAttrs()
	la.Name = "bench0"
	if err := ha.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "bench0", PeerNamespace: netlink.NsFd(b.Fd())}); err != nil {
		return err
	}
	for _, end := range []struct {
		h    *netlink.Handle
		addr string
		gw   string
	}{{ha, nodeAddr, serverAddr}, {hb, serverAddr, nodeAddr}} {
		l, err := end.h.LinkByName("bench0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(end.addr + "/30")
		if err != nil {
			return err
		}
		if err := end.h.AddrAdd(l, addr); err != nil {
			return err
		}
		if err := end.h.LinkSetUp(l); err != nil {
			return err
		}
		if err := end.h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(end.gw)}); err != nil {
			return err
		}
	}
	return nil
}
