// Command apiserver measures what Fairway's API server costs: how long it
// takes from the start of the process, with an empty data directory, until
// /readyz is ok, and how much memory it holds when idle. It prints one line
// of JSON. bench/apiserver.sh runs it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/lean"
)

func main() {
	dir := flag.String("data-dir", "", "data directory; default: a fresh one, removed at the end")
	idle := flag.Duration("idle", 30*time.Second, "how long to stay idle before memory is read")
	gogc := flag.Int("gogc", 0, "GOGC, 0 for Fairway's default")
	verbose := flag.Bool("v", false, "print the server's log")
	heap := flag.String("heap", "", "write a heap profile to this file at the end")
	cpu := flag.String("cpu", "", "write a CPU profile of the start to this file")
	kubeconfig := flag.String("kubeconfig", "", "write an administrator's kubeconfig to this file when ready")
	flag.Parse()
	if err := run(*dir, *idle, *gogc, *verbose, *heap, *cpu, *kubeconfig); err != nil {
		fmt.Fprintln(os.Stderr, "apiserver bench:", err)
		os.Exit(1)
	}
}

func run(dir string, idle time.Duration, gogc int, verbose bool, heap, cpu, kubeconfig string) error {
	lean.Begin()
	if gogc > 0 {
		debug.SetGCPercent(gogc)
	}
	if dir == "" {
		tmp, err := os.MkdirTemp("", "fairway-bench-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	level := slog.LevelError + 1
	if verbose {
		level = slog.LevelDebug
	}
	if cpu != "" {
		f, err := os.Create(cpu)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
	}
	server, err := apiserver.Start(context.Background(), apiserver.Options{
		DataDir: dir,
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		return err
	}
	ready := time.Since(processStart())
	pprof.StopCPUProfile()
	if kubeconfig != "" {
		b, err := server.KubeconfigFor(apiserver.Admin(), "")
		if err != nil {
			return err
		}
		if err := os.WriteFile(kubeconfig, b, 0o600); err != nil {
			return err
		}
	}
	lean.Keep(context.Background(), slog.Default())
	before := cpuTime()
	time.Sleep(idle)
	busy := cpuTime() - before
	status, err := memory()
	if err != nil {
		return err
	}
	if heap != "" {
		f, err := os.Create(heap)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.WriteHeapProfile(f); err != nil {
			return err
		}
	}
	goroutines := runtime.NumGoroutine()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	begin := time.Now()
	server.Shutdown()
	out, err := json.Marshal(map[string]any{
		"ready_ms":     ready.Milliseconds(),
		"rss_mb":       status["VmRSS"] >> 10,
		"rss_anon_mb":  status["RssAnon"] >> 10,
		"rss_file_mb":  status["RssFile"] >> 10,
		"heap_live_mb": m.HeapAlloc >> 20,
		"heap_held_mb": (m.HeapSys - m.HeapReleased) >> 20,
		"stacks_mb":    m.StackInuse >> 20,
		"idle_cpu_pct": percent(busy, idle),
		"goroutines":   goroutines,
		"idle_s":       idle.Seconds(),
		"stop_ms":      time.Since(begin).Milliseconds(),
	})
	fmt.Println(string(out))
	return err
}

// percent returns part of whole to a tenth of a percent, 0 of nothing.
func percent(part, whole time.Duration) float64 {
	if whole <= 0 {
		return 0
	}
	return math.Round(1000*part.Seconds()/whole.Seconds()) / 10
}

// cpuTime returns how much processor time this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory reads this process's sizes in kB from /proc/self/status.
func memory() (map[string]int, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	sizes := map[string]int{}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		if kb, ok := strings.CutSuffix(strings.TrimSpace(rest), " kB"); ok {
			sizes[name], _ = strconv.Atoi(kb)
		}
	}
	return sizes, nil
}

// processStart returns when the kernel started this process, to 10 ms.
func processStart() time.Time {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return time.Now()
	}
	// Field 22 counts clock ticks (100 a second) since boot; the fields follow the
	// name in parentheses, which is the second.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	ticks, _ := strconv.ParseInt(fields[19], 10, 64)
	up, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return time.Now()
	}
	uptime, _ := strconv.ParseFloat(strings.Fields(string(up))[0], 64)
	return time.Now().Add(time.Duration(ticks)*10*time.Millisecond - time.Duration(uptime*float64(time.Second)))
}
