package echo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/signal"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

// GetOptions say what [Get] asks for and how often.
type GetOptions struct {
	URL     string        // http://host:port/path, or tcp://host:port
	Count   int           // how many requests; 0 is until the context ends or For is over
	For     time.Duration // how long to go on; 0 is without limit
	Rate    float64       // requests begun per second; 0 is as fast as Workers can
	Workers int           // how many at once
	Timeout time.Duration // of one request, connection included
}

// Tally is what came of the requests of a [Get].
type Tally struct {
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// Late counts requests that a Rate asked for and that no worker was free
	// to begin in time. They were not made.
	Late int `json:"late,omitempty"`
	// Pods counts the good answers by the Pod that gave them.
	Pods map[string]int `json:"pods"`
	// Errors counts the failures by their text.
	Errors map[string]int `json:"errors,omitempty"`
}

// Get requests a URL of a [Server], each time over a new connection, and
// counts who answers. each, unless nil, is called with every answer or error,
// one call at a time. It returns when all is done or ctx ends; requests cut by
// the end of ctx are not counted.
func Get(ctx context.Context, o GetOptions, each func(Answer, error)) Tally {
	if o.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.For)
		defer cancel()
	}
	// Work begins until ctx ends; what has begun may finish.
	client := &http.Client{Timeout: o.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	t := Tally{Pods: map[string]int{}, Errors: map[string]int{}}
	var mu sync.Mutex
	turns := make(chan struct{})
	var wg sync.WaitGroup
	for range max(o.Workers, 1) {
		wg.Go(func() {
			for range turns {
				a, err := ask(client, o)
				mu.Lock()
				t.Requests++
				if err != nil {
					t.Failed++
					t.Errors[err.Error()]++
				} else {
					t.Pods[a.Pod]++
				}
				if each != nil {
					each(a, err)
				}
				mu.Unlock()
			}
		})
	}
	t.Late = giveTurns(ctx, o, turns)
	close(turns)
	wg.Wait()
	return t
}

// giveTurns hands out the requests to begin and returns how many came too late.
func giveTurns(ctx context.Context, o GetOptions, turns chan<- struct{}) (late int) {
	start := time.Now()
	for i := 0; o.Count == 0 || i < o.Count; i++ {
		if o.Rate <= 0 {
			select {
			case turns <- struct{}{}:
			case <-ctx.Done():
				return late
			}
			continue
		}
		due := start.Add(time.Duration(float64(i) / o.Rate * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return late
			}
		}
		// A rate is kept by leaving out what no worker can begin within a
		// second of its time, not by falling ever further behind.
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return late
		case <-time.After(max(0, time.Second-time.Since(due))):
			late++
		}
	}
	return late
}

// ask makes one request: HTTP, or for tcp://host:port a connection that reads
// the line the server greets with.
func ask(client *http.Client, o GetOptions) (Answer, error) {
	if address, ok := strings.CutPrefix(o.URL, "tcp://"); ok {
		return greet(address, o.Timeout)
	}
	return getOnce(client, o.URL)
}

func greet(address string, timeout time.Duration) (Answer, error) {
	c, err := net.DialTimeout("tcp", address, timeout)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	line, err := bufio.NewReaderSize(c, 1024).ReadString('\n')
	if err != nil {
		return Answer{}, fmt.Errorf("reading the answer: %w", err)
	}
	a, ok := parseAnswer(line)
	if !ok {
		return a, fmt.Errorf("not an answer of fairway echo: %q", line)
	}
	return a, nil
}

func getOnce(client *http.Client, url string) (Answer, error) {
	var a Answer
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return a, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return a, unwrapURL(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a, errors.New(resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return a, fmt.Errorf("not an answer of fairway echo: %w", err)
	}
	return a, nil
}

// unwrapURL drops the URL that net/http puts before each error: it is the
// same for all.
func unwrapURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// getMain is `fairway echo get`.
func getMain(args []string, stdout, stderr io.Writer) int {
	o := GetOptions{Count: 1, Workers: 1, Timeout: 5 * time.Second}
	tally := false
	fs := flag.NewFlagSet("fairway echo get", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(stderr, "fairway echo get [flags] URL: request a URL of an echo server and print who answers, a line each\nURL is http://host:port/path, or tcp://host:port\n")
		fs.PrintDefaults()
	}
	fs.IntVar(&o.Count, "n", o.Count, "how many requests; 0 for no limit")
	fs.DurationVar(&o.For, "for", o.For, "how long to go on (0: until done)")
	fs.Float64Var(&o.Rate, "rate", o.Rate, "requests begun per second (0: as fast as it goes)")
	fs.IntVar(&o.Workers, "c", o.Workers, "how many requests at once")
	fs.DurationVar(&o.Timeout, "timeout", o.Timeout, "of one request, connection included")
	fs.BoolVar(&tally, "tally", tally, "print only the sum of it, as JSON")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.NArg() != 1 {
		fmt.Fprintln(stderr, "fairway echo get: give one URL, such as http://web.default/")
		return 2
	}
	o.URL = fs.Arg(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	each := func(a Answer, err error) {
		if err != nil {
			fmt.Fprintln(stderr, "error:", err)
			return
		}
		stdout.Write(a.Text())
	}
	if tally {
		each = nil
	}
	t := Get(ctx, o, each)
	if tally {
		json.NewEncoder(stdout).Encode(t)
	} else if t.Failed > 0 {
		fmt.Fprintf(stderr, "%d of %d requests failed\n", t.Failed, t.Requests)
	}
	if t.Failed > 0 {
		return 1
	}
	return 0
}

// Names returns the Pods that answered, sorted.
func (t Tally) Names() []string {
	var names []string
	for n := range t.Pods {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}
