package echo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// Main is the whole program: it reads args (without the program's name), runs
// a server until SIGTERM or SIGINT, logs to out as text, and returns the exit
// status: 0 after a clean stop, 1 when a listener failed or requests had to be
// cut, 2 for a wrong command line. With "get" as its first argument it is the
// client instead, and prints answers to standard output.
func Main(args []string, out io.Writer) int {
	if len(args) > 0 && args[0] == "get" {
		return getMain(args[1:], os.Stdout, out)
	}
	opts := DefaultOptions()
	fs := flag.NewFlagSet("fairway echo", flag.ContinueOnError)
	fs.SetOutput(out)
	opts.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(out, "fairway echo: unexpected argument %q: it takes flags only\n", fs.Arg(0))
		return 2
	}
	log := slog.New(slog.NewTextHandler(out, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s, err := New(opts, log)
	if err != nil {
		fmt.Fprintf(out, "fairway echo: %v\n", err)
		return 1
	}
	if err := s.Run(ctx); err != nil {
		log.Error("stopped badly", "error", err)
		return 1
	}
	return 0
}
