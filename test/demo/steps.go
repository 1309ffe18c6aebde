package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/echo"
)

// files are the examples that the story uses.
var files = []string{
	"web-host.yaml",
	"nodeport.yaml",
	"loadbalancer.yaml",
	"session-affinity.yaml",
	"client.yaml",
}

func (d *demo) up(ctx context.Context) error {
	d.title("Three nodes", "One binary, no cluster, no Docker: an API, nodes in network namespaces, the data plane, DNS, a load balancer.")
	d.shows("fairway up --nodes 3 --zones a,b,c --detach")
	// Its closing words are for those who start it by hand.
	if err := d.command(ctx, &untilReady{w: os.Stdout}, "up", "--nodes", "3", "--zones", "a,b,c", "--detach", "--data-dir", d.dataDir); err != nil {
		return err
	}
	return d.connect()
}

// untilReady passes lines on up to the one that says Ready.
type untilReady struct {
	w    io.Writer
	done bool
}

func (u *untilReady) Write(b []byte) (int, error) {
	for _, line := range bytes.SplitAfter(b, []byte("\n")) {
		if u.done {
			break
		}
		if bytes.Contains(line, []byte("Ready")) {
			line, u.done = bytes.Replace(line, []byte(" Try:"), nil, 1), true
		}
		if _, err := u.w.Write(line); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (d *demo) apply(ctx context.Context) error {
	d.title("Plain Kubernetes YAML", "A Deployment with a Service, as everyone writes it.")
	for _, f := range files {
		d.shows("kubectl apply -f examples/" + f)
		if _, err := d.output(ctx, "kubectl", "apply", "-f", filepath.Join(d.examples, f)); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) pods(ctx context.Context) error {
	d.title("Pods have addresses of their own", "Each is a network namespace on one of the nodes, and gets a new address whenever it starts.")
	var pods []corev1.Pod
	err := eventually(ctx, "three ready Pods and a client", func() error {
		client, err := d.client.CoreV1().Pods(namespace).Get(ctx, "client", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if pods, err = d.webPods(ctx); err != nil {
			return err
		}
		if len(pods) != 3 || client.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("%d of 3 are ready, the client is %s", len(pods), client.Status.Phase)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.shows("kubectl get pods -l app=web -o wide")
	var rows [][]string
	for _, p := range pods {
		rows = append(rows, []string{p.Name, p.Spec.NodeName, ips(p)})
	}
	d.table([]string{"POD", "NODE", "ADDRESSES"}, rows)
	return nil
}

func (d *demo) clusterIP(ctx context.Context) error {
	svc, err := d.service(ctx, "web")
	if err != nil {
		return err
	}
	d.title("ClusterIP: one address that stays", "The Service web picks Pods by label. From inside the cluster its address reaches them all.")
	const n = 300
	d.shows(fmt.Sprintf("kubectl exec client -- fairway echo get -n %d http://%s/", n, svc.Spec.ClusterIP))
	tally, err := d.inside(ctx, "http://"+svc.Spec.ClusterIP+"/", "-n", strconv.Itoa(n), "-c", "4")
	if err != nil {
		return err
	}
	if err := clean(tally); err != nil {
		return err
	}
	d.shares(tally)
	if len(tally.Pods) != 3 {
		return fmt.Errorf("%d Pods answered, want 3", len(tally.Pods))
	}
	d.check("%d requests to %s, answered by all 3 Pods", tally.Requests, svc.Spec.ClusterIP)
	return nil
}

func (d *demo) replacement(ctx context.Context) error {
	d.title("A Pod goes, its replacement has another address", "The Service's address stays, and no request is lost on the way: 200 a second go on while the Pod is replaced.")
	before, err := d.webPods(ctx)
	if err != nil {
		return err
	}
	svc, err := d.service(ctx, "web")
	if err != nil {
		return err
	}
	type result struct {
		tally echo.Tally
		err   error
	}
	loaded := make(chan result, 1)
	go func() {
		t, err := d.inside(ctx, "http://"+svc.Spec.ClusterIP+"/", "-n", "0", "-for", "5s", "-rate", "200", "-c", "8")
		loaded <- result{t, err}
	}()
	time.Sleep(time.Second) // the load is under way
	gone := before[0]
	d.shows("kubectl delete pod " + gone.Name)
	if err := d.client.CoreV1().Pods(namespace).Delete(ctx, gone.Name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	var fresh corev1.Pod
	err = eventually(ctx, "a replacement", func() error {
		after, err := d.webPods(ctx)
		if err != nil {
			return err
		}
		old := map[string]bool{}
		for _, p := range before {
			old[p.Name] = true
		}
		for _, p := range after {
			if !old[p.Name] && len(after) == 3 {
				fresh = p
				return nil
			}
		}
		return fmt.Errorf("%d of 3 are ready", len(after))
	})
	if err != nil {
		return err
	}
	r := <-loaded
	if r.err != nil {
		return r.err
	}
	if err := clean(r.tally); err != nil {
		return err
	}
	d.table([]string{"", "POD", "NODE", "ADDRESSES"}, [][]string{
		{"gone", gone.Name, gone.Spec.NodeName, ips(gone)},
		{"new", fresh.Name, fresh.Spec.NodeName, ips(fresh)},
	})
	if gone.Status.PodIP == fresh.Status.PodIP {
		return fmt.Errorf("the replacement has the old address %s", fresh.Status.PodIP)
	}
	if r.tally.Pods[fresh.Name] == 0 {
		return fmt.Errorf("the replacement %s answered nothing", fresh.Name)
	}
	now, err := d.service(ctx, "web")
	if err != nil {
		return err
	}
	if now.Spec.ClusterIP != svc.Spec.ClusterIP {
		return fmt.Errorf("the Service's address changed from %s to %s", svc.Spec.ClusterIP, now.Spec.ClusterIP)
	}
	d.check("%d requests to %s in 5 s, none lost", r.tally.Requests, svc.Spec.ClusterIP)
	return nil
}

func (d *demo) dns(ctx context.Context) error {
	d.title("A name in DNS", "Nobody has to know the address. Each node answers for the cluster's names.")
	svc, err := d.service(ctx, "web")
	if err != nil {
		return err
	}
	d.shows("kubectl exec client -- getent ahosts web")
	out, err := d.output(ctx, "kubectl", "exec", "client", "--", "getent", "ahosts", "web")
	if err != nil {
		return err
	}
	if !strings.Contains(out, svc.Spec.ClusterIP) {
		return fmt.Errorf("web resolves to %q, want %s", out, svc.Spec.ClusterIP)
	}
	name := "web." + namespace + ".svc.cluster.local"
	tally, err := d.inside(ctx, "http://"+name+"/", "-n", "20")
	if err != nil {
		return err
	}
	if err := clean(tally); err != nil {
		return err
	}
	d.check("web is %s, and http://%s/ answers", strings.Join(svc.Spec.ClusterIPs, " and "), name)
	return nil
}

func (d *demo) nodePort(ctx context.Context) error {
	svc, err := d.service(ctx, "web-nodeport")
	if err != nil {
		return err
	}
	port := strconv.Itoa(int(svc.Spec.Ports[0].NodePort))
	d.title("NodePort: the same port on every node", "From outside, here from this machine, through whichever node.")
	nodes, err := d.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var rows [][]string
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			if a.Type != corev1.NodeInternalIP {
				continue
			}
			url := "http://" + net.JoinHostPort(a.Address, port) + "/"
			answer, err := d.outside(ctx, url)
			if err != nil {
				return err
			}
			rows = append(rows, []string{"curl " + url, n.Name, answer.Pod, answer.Node})
		}
	}
	d.table([]string{"REQUEST", "TO NODE", "ANSWERED BY", "ON NODE"}, rows)
	if len(rows) < len(nodes.Items) {
		return fmt.Errorf("%d node addresses for %d nodes", len(rows), len(nodes.Items))
	}
	d.check("%d addresses of %d nodes answer on port %s", len(rows), len(nodes.Items), port)
	return nil
}

func (d *demo) loadBalancer(ctx context.Context) error {
	d.title("LoadBalancer: an address for the outside world", "Taken from a pool and announced to the network by ARP: this machine reaches it like any neighbour.")
	var address string
	err := eventually(ctx, "an external address", func() error {
		svc, err := d.service(ctx, "web-lb")
		if err != nil {
			return err
		}
		if len(svc.Status.LoadBalancer.Ingress) == 0 {
			return errors.New("it is pending")
		}
		address = svc.Status.LoadBalancer.Ingress[0].IP
		_, err = d.outside(ctx, "http://"+address+"/")
		return err
	})
	if err != nil {
		return err
	}
	d.lbAddress = address
	d.shows("for i in $(seq 60); do curl http://" + address + "/; done")
	tally := echo.Tally{Pods: map[string]int{}}
	for range 60 {
		a, err := d.outside(ctx, "http://"+address+"/")
		if err != nil {
			return err
		}
		tally.Requests++
		tally.Pods[a.Pod]++
	}
	d.shares(tally)
	if len(tally.Pods) < 2 {
		return fmt.Errorf("%d Pod answered 60 requests, want them spread", len(tally.Pods))
	}
	d.check("%s answers from outside, spread over %d Pods", address, len(tally.Pods))
	return nil
}

func (d *demo) affinity(ctx context.Context) error {
	svc, err := d.service(ctx, "web-sticky")
	if err != nil {
		return err
	}
	d.title("Session affinity: a client stays with its Pod", "sessionAffinity: ClientIP.")
	tally, err := d.inside(ctx, "http://"+svc.Spec.ClusterIP+"/", "-n", "30")
	if err != nil {
		return err
	}
	if err := clean(tally); err != nil {
		return err
	}
	d.shares(tally)
	if len(tally.Pods) != 1 {
		return fmt.Errorf("%d Pods answered one client, want 1", len(tally.Pods))
	}
	d.check("30 requests, one Pod")
	return nil
}

func (d *demo) portForward(ctx context.Context) error {
	d.title("kubectl port-forward", "The way into one Pod from a developer's machine, over the API.")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := d.prepare(ctx, "kubectl", "port-forward", "service/web", ":80")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer cancel()
	d.shows("kubectl port-forward service/web :80")
	// "Forwarding from 127.0.0.1:40123 -> 8080"
	line, err := bufio.NewReader(pipe).ReadString('\n')
	if err != nil {
		return fmt.Errorf("port-forward: %w", err)
	}
	_, rest, _ := strings.Cut(line, "Forwarding from ")
	local, _, ok := strings.Cut(rest, " -> ")
	if !ok {
		return fmt.Errorf("port-forward said %q", line)
	}
	answer, err := d.outside(ctx, "http://"+local+"/")
	if err != nil {
		return err
	}
	d.check("http://%s/ is answered by %s", local, answer.Pod)
	return nil
}

// shares prints who answered how often.
func (d *demo) shares(t echo.Tally) {
	var rows [][]string
	for _, name := range t.Names() {
		n := t.Pods[name]
		rows = append(rows, []string{name, strconv.Itoa(n), strings.Repeat("▇", (n*30+t.Requests-1)/t.Requests)})
	}
	d.table([]string{"ANSWERED BY", "TIMES", "SHARE"}, rows)
}

// clean says what failed, if anything did.
func clean(t echo.Tally) error {
	if t.Failed == 0 && t.Requests > 0 {
		return nil
	}
	return fmt.Errorf("%d of %d requests failed: %v", t.Failed, t.Requests, t.Errors)
}

func ips(p corev1.Pod) string {
	var out []string
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return strings.Join(out, "  ")
}
