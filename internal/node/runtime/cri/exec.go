package cri

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	api "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"

	"fairway.dev/fairway/internal/node/runtime"
)

// Exec implements runtime.Runtime.
func (r *Runtime) Exec(ctx context.Context, id string, cmd []string, s runtime.Streams) (int, error) {
	if s.Short {
		out, errOut, err := r.rt.ExecSync(ctx, r.bare(id), cmd, 0)
		for _, w := range []struct {
			to   interface{ Write([]byte) (int, error) }
			data []byte
		}{{s.Stdout, out}, {s.Stderr, errOut}} {
			if w.to != nil {
				w.to.Write(w.data) //nolint:errcheck // a buffer
			}
		}
		return exitCode(err)
	}
	resp, err := r.rt.Exec(ctx, &api.ExecRequest{ContainerId: r.bare(id), Cmd: cmd, Tty: s.TTY, Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil && !s.TTY})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", r.name, err)
	}
	return exitCode(stream(ctx, resp.Url, s))
}

func exitCode(err error) (int, error) {
	var exit utilexec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitStatus(), nil
	}
	return 0, err
}

// Attach implements runtime.Runtime.
func (r *Runtime) Attach(ctx context.Context, id string, s runtime.Streams) error {
	resp, err := r.rt.Attach(ctx, &api.AttachRequest{ContainerId: r.bare(id), Tty: s.TTY, Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil && !s.TTY})
	if err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	return stream(ctx, resp.Url, s)
}

// stream joins a client with the daemon's streaming server.
func stream(ctx context.Context, address string, s runtime.Streams) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	ex, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: u.Scheme == "https"}}, "POST", u)
	if err != nil {
		return err
	}
	o := remotecommand.StreamOptions{Tty: s.TTY, Stdin: s.Stdin}
	if s.Stdout != nil {
		o.Stdout = s.Stdout
	}
	if s.Stderr != nil && !s.TTY {
		o.Stderr = s.Stderr
	}
	if s.Resize != nil {
		o.TerminalSizeQueue = sizes{s}
	}
	return ex.StreamWithContext(ctx, o)
}

type sizes struct{ s runtime.Streams }

func (q sizes) Next() *remotecommand.TerminalSize {
	w, ok := <-q.s.Resize
	if !ok {
		return nil
	}
	return &remotecommand.TerminalSize{Width: w.Col, Height: w.Row}
}
