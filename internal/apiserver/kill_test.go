package apiserver_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// serverToKill is a process that runs a server and stores one ConfigMap after
// the other, and prints the name of each when the server has said that it is stored.
func serverToKill() {
	s, err := apiserver.Start(context.Background(), apiserver.Options{DataDir: os.Getenv("FAIRWAY_TEST_DIR"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	config, err := s.ClientConfig(apiserver.Admin())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	client := kubernetes.NewForConfigOrDie(config)
	for i := 0; ; i++ {
		name := fmt.Sprintf("cm-%d-%d", os.Getpid(), i)
		if _, err := client.CoreV1().ConfigMaps("default").Create(context.Background(), configMap(name), metav1.CreateOptions{}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(name)
	}
}

// TestKill kills a server in the middle of writing, three times, and expects
// everything that it acknowledged.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var stored []string
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), roleVariable+"="+roleServer, "FAIRWAY_TEST_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		watchdog := time.AfterFunc(2*limit, func() { cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for n := 0; n < 20+13*round && lines.Scan(); n++ {
			stored = append(stored, lines.Text())
		}
		cmd.Process.Kill() // SIGKILL
		for lines.Scan() { // it may have stored more meanwhile
			stored = append(stored, lines.Text())
		}
		cmd.Wait()
		watchdog.Stop()
	}
	if len(stored) < 90 {
		t.Fatalf("the servers stored only %d objects", len(stored))
	}
	s := apitest.Start(t, func(o *apiserver.Options) { o.DataDir = dir })
	client := apitest.Client(t, s, apiserver.Admin())
	list, err := client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, cm := range list.Items {
		have[cm.Name] = true
	}
	for _, name := range stored {
		if !have[name] {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
}
