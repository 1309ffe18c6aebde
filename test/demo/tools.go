package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"fairway.dev/fairway/internal/console"
	"fairway.dev/fairway/internal/echo"
)

// demo is the state of the story.
type demo struct {
	fairway, examples, dataDir string

	out       *console.Printer
	client    kubernetes.Interface
	steps     int
	lbAddress string
}

// namespace is where the examples are applied.
const namespace = "default"

// title begins a step: what is to be seen, and why it matters.
func (d *demo) title(title, why string) {
	d.steps++
	d.out.Printf("\n%s\n", d.out.Bold(fmt.Sprintf("%d. %s", d.steps, title)))
	d.out.Printf("   %s\n", d.out.Faint(why))
}

// shows prints the command that a reader would type for what comes next.
func (d *demo) shows(command string) { d.out.Printf("   %s %s\n", d.out.Faint("$"), command) }

// command runs fairway and shows what it prints.
func (d *demo) command(ctx context.Context, out io.Writer, args ...string) error {
	cmd := d.prepare(ctx, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("fairway %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// output runs fairway and returns its standard output.
func (d *demo) output(ctx context.Context, args ...string) (string, error) {
	cmd := d.prepare(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("fairway %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (d *demo) prepare(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.fairway, args...)
	cmd.Env = append(os.Environ(), "FAIRWAY_DATA_DIR="+d.dataDir, "KUBECONFIG="+filepath.Join(d.dataDir, "kubeconfig"))
	return cmd
}

// connect makes the client that the checks use.
func (d *demo) connect() error {
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(d.dataDir, "kubeconfig"))
	if err != nil {
		return err
	}
	d.client, err = kubernetes.NewForConfig(cfg)
	return err
}

// inside asks a URL from a Pod, n times, and returns who answered.
func (d *demo) inside(ctx context.Context, url string, flags ...string) (echo.Tally, error) {
	var t echo.Tally
	args := append([]string{"kubectl", "exec", "client", "--", "fairway", "echo", "get", "-tally"}, flags...)
	out, err := d.output(ctx, append(args, url)...)
	if jerr := json.Unmarshal([]byte(out), &t); jerr != nil {
		return t, fmt.Errorf("ask %s from the Pod client: %w", url, firstError(err, jerr))
	}
	return t, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// outside asks a URL from this machine, over a new connection.
func (d *demo) outside(ctx context.Context, url string) (echo.Answer, error) {
	var a echo.Answer
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return a, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return a, json.NewDecoder(resp.Body).Decode(&a)
}

// eventually waits until f is content, at most a minute.
func eventually(ctx context.Context, what string, f func() error) error {
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within a minute: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// webPods returns the ready Pods of the example Deployment, by name.
func (d *demo) webPods(ctx context.Context) ([]corev1.Pod, error) {
	list, err := d.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		return nil, err
	}
	var out []corev1.Pod
	for _, p := range list.Items {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil {
				out = append(out, p)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

func (d *demo) service(ctx context.Context, name string) (*corev1.Service, error) {
	return d.client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (d *demo) table(header []string, rows [][]string) { d.out.Table("     ", header, rows) }

func (d *demo) check(format string, args ...any) {
	d.out.Printf("   %s %s\n", d.out.Green("✓"), fmt.Sprintf(format, args...))
}
