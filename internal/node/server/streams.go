package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"fairway.dev/fairway/internal/netns"
	"fairway.dev/fairway/internal/node/lifecycle"
	"fairway.dev/fairway/internal/node/runtime"
)

// Limits of upstream's kubelet.
const (
	idleTimeout     = 4 * time.Hour
	creationTimeout = 30 * time.Second
)

// container finds the one a request is about, running.
func (s *Server) container(w http.ResponseWriter, r *http.Request) (lifecycle.Handle, bool) {
	h, err := s.Pods.Container(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return h, false
	}
	if !h.Running || h.Runtime == nil {
		http.Error(w, fmt.Sprintf("container %q is not running", r.PathValue("container")), http.StatusBadRequest)
		return h, false
	}
	return h, true
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	h, ok := s.container(w, r)
	if !ok {
		return
	}
	opts, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, executor{h}, r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"), r.URL.Query()["command"],
		opts, idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	h, ok := s.container(w, r)
	if !ok {
		return
	}
	opts, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// As upstream: what the container has is what can be attached to.
	opts.TTY = h.Spec.TTY
	if opts.TTY {
		opts.Stderr = false
	}
	remotecommand.ServeAttach(w, r, executor{h}, r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"),
		opts, idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

// executor runs what a stream asks for in its container.
type executor struct{ h lifecycle.Handle }

func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	code, err := e.h.Runtime.Exec(ctx, e.h.ID, cmd, streams(in, out, errw, tty, sizes(ctx, resize)))
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

func (e executor) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return e.h.Runtime.Attach(ctx, e.h.ID, streams(in, out, errw, tty, sizes(ctx, resize)))
}

// streams drops interfaces that hold a nil pointer, which the library passes.
func streams(in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan unix.Winsize) runtime.Streams {
	return runtime.Streams{Stdin: in, Stdout: out, Stderr: errw, TTY: tty, Resize: resize}
}

func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan unix.Winsize {
	if in == nil {
		return nil
	}
	out := make(chan unix.Winsize)
	go func() {
		defer close(out)
		for {
			select {
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- unix.Winsize{Row: s.Height, Col: s.Width}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	name, host, err := s.Pods.Network(r.PathValue("namespace"), r.PathValue("pod"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	opts, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f := forwarder{name: name}
	if host {
		f.ns = s.NS
	}
	portforward.ServePortForward(w, r, f, r.PathValue("pod"), r.PathValue("uid"), opts, idleTimeout, creationTimeout, portforward.SupportedProtocols)
}

// forwarder connects to a port on a Pod's loopback.
type forwarder struct {
	name string
	ns   *netns.NS // instead of the named one
}

func (f forwarder) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	ns := f.ns
	if ns == nil {
		var err error
		if ns, err = netns.Open(f.name); err != nil {
			return err
		}
		defer ns.Close()
	}
	var conn net.Conn
	var err error
	// As upstream: "localhost", whichever family answers.
	for _, ip := range []string{"127.0.0.1", "::1"} {
		if conn, err = ns.DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(int(port)))); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("failed to connect to localhost:%d inside the Pod: %w", port, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	up := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, stream)
		if c, ok := conn.(*net.TCPConn); ok {
			c.CloseWrite() //nolint:errcheck // it may be closed
		}
		up <- err
	}()
	_, err = io.Copy(stream, conn)
	return err
}
