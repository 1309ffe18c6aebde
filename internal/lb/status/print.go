package status

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/console"
)

// Print collects a report and writes it: as tables, or as JSON if output is
// "json".
func Print(ctx context.Context, config *rest.Config, w io.Writer, output string) error {
	if output != "" && output != "text" && output != "json" {
		return fmt.Errorf("--output: %q is unknown: must be text or json", output)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	fairway, err := v1alpha1.NewClient(config)
	if err != nil {
		return err
	}
	now := time.Now()
	r, err := Collect(ctx, client, fairway, now)
	if err != nil {
		return err
	}
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	r.Table(console.NewWriter(w, false), now)
	return nil
}

// Table writes the report for people.
func (r *Report) Table(p *console.Printer, now time.Time) {
	age := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return duration.HumanDuration(now.Sub(t))
	}
	p.Printf("Pools\n")
	var rows [][]string
	for _, x := range r.Pools {
		where := strings.Join(x.Addresses, " ")
		if x.Provider == string(v1alpha1.ProviderNodeAddress) {
			where = "the nodes' own"
		}
		state := "yes"
		if !x.Ready {
			state = "no"
		}
		if x.Message != "" {
			state += ": " + x.Message
		}
		rows = append(rows, []string{x.Name, usage(x.IPv4), usage(x.IPv6), strconv.FormatInt(x.Services, 10), yes(x.AutoAssign), x.Announce, where, state})
	}
	table(p, []string{"NAME", "IPV4 USED", "IPV6 USED", "SERVICES", "AUTO", "ANNOUNCE", "ADDRESSES", "READY"}, rows, "There is none.")

	p.Printf("\nAddresses\n")
	rows = nil
	for _, x := range r.Addresses {
		via := x.Via
		if len(x.Links) > 0 {
			via += " on " + strings.Join(x.Links, ",")
		}
		node, since, why := x.Node, "", x.Why
		if x.Since != nil {
			since = age(*x.Since)
		}
		if len(x.Also) > 0 {
			why += "; also announced by " + strings.Join(x.Also, ", ")
		}
		rows = append(rows, []string{x.Address, strings.Join(x.Services, ","), x.Pool, node, via, since, why})
	}
	table(p, []string{"ADDRESS", "SERVICES", "POOL", "NODE", "VIA", "SINCE", "WHY"}, rows, "None is in use.")

	if len(r.Pending) > 0 {
		p.Printf("\nWaiting\n")
		rows = nil
		for _, x := range r.Pending {
			rows = append(rows, []string{x.Service, age(x.Since), x.Reason, x.Message})
		}
		table(p, []string{"SERVICE", "SINCE", "REASON", "MESSAGE"}, rows, "")
	}

	p.Printf("\nNodes\n")
	rows = nil
	for _, x := range r.Nodes {
		if len(x.Deaf) > 0 {
			x.Hears = append(x.Hears, "not "+strings.Join(x.Deaf, ",")+" (heartbeats blocked?)")
		}
		rows = append(rows, []string{x.Name, x.Phase, strconv.FormatInt(x.Announces, 10), strings.Join(x.Hears, ","), age(x.Renewed)})
	}
	table(p, []string{"NODE", "PHASE", "ANNOUNCES", "HEARS", "RENEWED"}, rows, "No announcer has run.")
}

func table(p *console.Printer, header []string, rows [][]string, none string) {
	if len(rows) == 0 {
		p.Printf("  %s\n", none)
		return
	}
	p.Table("  ", header, rows)
}

func usage(u v1alpha1.Usage) string {
	if u.Total == 0 && u.Used == 0 {
		return ""
	}
	if u.Total == math.MaxInt64 {
		return fmt.Sprintf("%d of many", u.Used)
	}
	return fmt.Sprintf("%d of %d", u.Used, u.Total)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
