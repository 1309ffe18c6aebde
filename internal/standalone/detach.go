package standalone

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"fairway.dev/fairway/internal/console"
)

// A detached instance tells its parent how it gets on through a pipe: lines to
// show as they are, and one last line, a mark followed by nothing (ready) or
// by what went wrong.
const (
	progressFD  = 3
	progressEnv = "FAIRWAY_PROGRESS_FD"
	terminalEnv = "FAIRWAY_PROGRESS_TERMINAL"
	endMark     = "\x00end "
)

// Detach starts this program again in the background with args, copies its
// progress to out, and returns when it is ready, or with the error that ended
// it. The instance outlives the caller and its terminal.
func Detach(args []string, dataDir string, out *console.Printer) error {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// What the runtime itself prints, such as a crash, belongs in the log too.
	logf, err := os.OpenFile(filepath.Join(dataDir, LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		w.Close()
		return err
	}
	defer logf.Close()
	cmd := exec.Command(exe, args...)
	cmd.Stdout, cmd.Stderr = logf, logf
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", progressEnv, progressFD))
	if out.Terminal() {
		cmd.Env = append(cmd.Env, terminalEnv+"=1")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("start in the background: %w", err)
	}
	w.Close()
	verdict, err := follow(r, out)
	if err == nil {
		if verdict != "" {
			err = errors.New(verdict)
		} else {
			return cmd.Process.Release()
		}
	}
	cmd.Wait()
	return err
}

// follow copies progress until the end mark and returns what follows it.
func follow(r io.Reader, out *console.Printer) (string, error) {
	br := bufio.NewReader(r)
	var line strings.Builder
	for {
		b, err := br.ReadByte()
		if err != nil {
			return "", fmt.Errorf("it ended before it was ready; its log says why")
		}
		if b == endMark[0] {
			rest, err := io.ReadAll(br)
			if err != nil {
				return "", err
			}
			return strings.TrimPrefix(string(rest), endMark[1:]), nil
		}
		line.WriteByte(b)
		// Escape sequences and lines are shown as they come.
		if br.Buffered() == 0 || b == '\n' {
			out.Printf("%s", line.String())
			line.Reset()
		}
	}
}

// Progress is where an instance reports to while it starts: the caller's
// terminal, or the parent that detached it.
type Progress struct {
	*console.Printer
	pipe *os.File
}

// NewProgress finds the parent's pipe, or reports to out.
func NewProgress(out *console.Printer) *Progress {
	if os.Getenv(progressEnv) == "" {
		return &Progress{Printer: out}
	}
	os.Unsetenv(progressEnv)
	terminal := os.Getenv(terminalEnv) != ""
	os.Unsetenv(terminalEnv)
	syscall.CloseOnExec(progressFD)
	pipe := os.NewFile(progressFD, "progress")
	return &Progress{Printer: console.NewWriter(pipe, terminal), pipe: pipe}
}

// Detached says whether a parent waits for the verdict.
func (p *Progress) Detached() bool { return p.pipe != nil }

// End tells the parent that the instance is ready (nil) or why it is not. It
// does nothing in the foreground, and nothing the second time.
func (p *Progress) End(err error) {
	if p.pipe == nil {
		return
	}
	msg := endMark
	if err != nil {
		msg += err.Error()
	}
	// A parent that went away has no use for it; writing must not kill us.
	fmt.Fprint(p.pipe, msg)
	p.pipe.Close()
	p.pipe = nil
	p.Printer = console.NewWriter(io.Discard, false)
}
