package echo

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"
)

func TestGetCounts(t *testing.T) {
	_, web, _ := start(t, nil)
	tally := Get(context.Background(), GetOptions{URL: web, Count: 40, Workers: 4, Timeout: 10 * time.Second}, nil)
	if tally.Requests != 40 || tally.Failed != 0 || tally.Pods["web-1"] != 40 {
		t.Errorf("got %+v, want 40 answers of web-1", tally)
	}
}

func TestGetCountsFailures(t *testing.T) {
	_, web, _ := start(t, func(o *Options) { o.FailureRate = 1 })
	tally := Get(context.Background(), GetOptions{URL: web, Count: 5, Workers: 1, Timeout: 10 * time.Second}, nil)
	if tally.Failed != 5 || tally.Errors["500 Internal Server Error"] != 5 {
		t.Errorf("got %+v, want 5 failures with status 500", tally)
	}
}

func TestGetEnds(t *testing.T) {
	_, web, _ := start(t, nil)
	tally := Get(context.Background(), GetOptions{URL: web, For: 100 * time.Millisecond, Rate: 100, Workers: 2, Timeout: 10 * time.Second}, nil)
	if tally.Requests == 0 || tally.Requests > 11 || tally.Failed != 0 {
		t.Errorf("got %+v, want some 10 requests in 0.1 s at 100/s", tally)
	}
}

func TestGetMain(t *testing.T) {
	_, web, _ := start(t, nil)
	var out, errs bytes.Buffer
	if code := getMain([]string{"-n", "3", "-tally", web}, &out, &errs); code != 0 {
		t.Fatalf("exit status %d: %s", code, errs.String())
	}
	var tally Tally
	if err := json.Unmarshal(out.Bytes(), &tally); err != nil || tally.Pods["web-1"] != 3 {
		t.Errorf("got %q, %v, want a tally of 3 answers", out.String(), err)
	}
	if code := getMain(nil, &out, &errs); code != 2 {
		t.Errorf("without a URL: exit status %d, want 2", code)
	}
	if code := getMain([]string{"-timeout", "2s", "http://127.0.0.1:1/"}, &out, &errs); code != 1 {
		t.Errorf("nobody there: exit status %d, want 1", code)
	}
}
