package standalone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"fairway.dev/fairway/internal/console"
)

// Status is what `fairway status` shows. Its JSON form is for scripts.
type Status struct {
	DataDir    string          `json:"dataDir"`
	Running    bool            `json:"running"`
	Healthy    bool            `json:"healthy"`
	PID        int             `json:"pid,omitempty"`
	Started    time.Time       `json:"started,omitzero"`
	Server     string          `json:"server,omitempty"`
	Kubeconfig string          `json:"kubeconfig,omitempty"`
	Nodes      []NodeStatus    `json:"nodes,omitempty"`
	Services   []ServiceStatus `json:"services,omitempty"`
	// Problem says why Healthy is false.
	Problem string `json:"problem,omitempty"`
}

// NodeStatus is one node of an instance.
type NodeStatus struct {
	Name      string   `json:"name"`
	Ready     bool     `json:"ready"`
	Reason    string   `json:"reason,omitempty"`
	Zone      string   `json:"zone,omitempty"`
	Addresses []string `json:"addresses"`
	Pods      int      `json:"pods"`
}

// ServiceStatus is one Service of an instance.
type ServiceStatus struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Type      string   `json:"type"`
	Addresses []string `json:"addresses,omitempty"`
	External  []string `json:"external,omitempty"`
	Ports     []string `json:"ports,omitempty"`
	// Ready counts the ready endpoints, each once, Total all of them.
	Ready int `json:"readyEndpoints"`
	Total int `json:"endpoints"`
}

// KubeconfigPath is where the kubeconfig of a data directory's instance is.
func KubeconfigPath(dir string) string {
	if inst, _, err := ReadInstance(dir); err == nil && inst.Options.Kubeconfig != "" {
		return inst.Options.Kubeconfig
	}
	return filepath.Join(dir, "kubeconfig")
}

// ReadStatus looks at the instance of a data directory. That none runs is not
// an error.
func ReadStatus(ctx context.Context, dir string) (*Status, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	st := &Status{DataDir: abs}
	inst, running, err := ReadInstance(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		st.Problem = NotRunning(abs).Error()
		return st, nil
	case err != nil:
		return nil, err
	case !running:
		st.Problem = NotRunning(abs).Error()
		return st, nil
	}
	st.Running, st.PID, st.Started = true, inst.PID, inst.Started
	st.Server, st.Kubeconfig = inst.Server, inst.Options.Kubeconfig
	if err := st.readAPI(ctx); err != nil {
		st.Problem = fmt.Sprintf("the API at %s does not answer: %v", st.Server, err)
		return st, nil
	}
	st.Healthy = true
	for _, n := range st.Nodes {
		if !n.Ready {
			st.Healthy = false
			st.Problem = fmt.Sprintf("%s is not ready: %s", n.Name, n.Reason)
		}
	}
	if inst.Ready.IsZero() {
		st.Healthy, st.Problem = false, "it is still starting"
	}
	return st, nil
}

func (st *Status) readAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cfg, err := clientcmd.BuildConfigFromFlags("", st.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	perNode := map[string]int{}
	for _, p := range pods.Items {
		if p.Status.Phase == corev1.PodRunning {
			perNode[p.Spec.NodeName]++
		}
	}
	for _, n := range nodes.Items {
		st.Nodes = append(st.Nodes, nodeStatus(&n, perNode[n.Name]))
	}
	slices.SortFunc(st.Nodes, func(a, b NodeStatus) int { return compareNatural(a.Name, b.Name) })
	services, err := client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	slicesList, err := client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	type key struct{ ns, name string }
	ready, total := map[key]map[string]bool{}, map[key]map[string]bool{}
	for _, s := range slicesList.Items {
		k := key{s.Namespace, s.Labels["kubernetes.io/service-name"]}
		if ready[k] == nil {
			ready[k], total[k] = map[string]bool{}, map[string]bool{}
		}
		for _, e := range s.Endpoints {
			// One endpoint of two families is in two slices: its Pod's name counts it once.
			id := strings.Join(e.Addresses, ",")
			if e.TargetRef != nil {
				id = e.TargetRef.Name
			}
			total[k][id] = true
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				ready[k][id] = true
			}
		}
	}
	for _, s := range services.Items {
		k := key{s.Namespace, s.Name}
		st.Services = append(st.Services, serviceStatus(&s, len(ready[k]), len(total[k])))
	}
	return nil
}

func nodeStatus(n *corev1.Node, pods int) NodeStatus {
	out := NodeStatus{Name: n.Name, Zone: n.Labels[corev1.LabelTopologyZone], Pods: pods, Reason: "it has not reported yet"}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			out.Addresses = append(out.Addresses, a.Address)
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Ready = c.Status == corev1.ConditionTrue
			out.Reason = cmp.Or(c.Message, c.Reason)
		}
	}
	return out
}

func serviceStatus(s *corev1.Service, ready, total int) ServiceStatus {
	out := ServiceStatus{Namespace: s.Namespace, Name: s.Name, Type: string(s.Spec.Type), Ready: ready, Total: total}
	out.Addresses = s.Spec.ClusterIPs
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		out.Addresses = []string{s.Spec.ExternalName}
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		out.External = append(out.External, cmp.Or(i.IP, i.Hostname))
	}
	out.External = append(out.External, s.Spec.ExternalIPs...)
	for _, p := range s.Spec.Ports {
		text := strconv.Itoa(int(p.Port))
		if p.NodePort != 0 {
			text += ":" + strconv.Itoa(int(p.NodePort))
		}
		out.Ports = append(out.Ports, text+"/"+string(p.Protocol))
	}
	return out
}

// Print shows the status to a person.
func (st *Status) Print(p *console.Printer) {
	if !st.Running {
		p.Printf("%s\n", st.Problem)
		return
	}
	state := p.Green("healthy")
	if !st.Healthy {
		state = p.Red("not healthy") + ": " + st.Problem
	}
	p.Printf("Instance     %s, %s\n", st.DataDir, state)
	p.Printf("Process      %d, up %s\n", st.PID, duration.HumanDuration(time.Since(st.Started)))
	p.Printf("API          %s\n", st.Server)
	p.Printf("Kubeconfig   %s\n", st.Kubeconfig)
	if len(st.Nodes) > 0 {
		p.Printf("\n")
		var rows [][]string
		for _, n := range st.Nodes {
			ready := "Ready"
			if !n.Ready {
				ready = "NotReady"
			}
			rows = append(rows, []string{n.Name, ready, n.Zone, strconv.Itoa(n.Pods), strings.Join(n.Addresses, " ")})
		}
		p.Table("", []string{"NODE", "STATUS", "ZONE", "PODS", "ADDRESSES"}, rows)
	}
	if len(st.Services) > 0 {
		p.Printf("\n")
		var rows [][]string
		for _, s := range st.Services {
			rows = append(rows, []string{
				s.Namespace + "/" + s.Name, s.Type, strings.Join(s.Addresses, " "), strings.Join(s.External, " "),
				strings.Join(s.Ports, " "), fmt.Sprintf("%d/%d", s.Ready, s.Total),
			})
		}
		p.Table("", []string{"SERVICE", "TYPE", "ADDRESSES", "EXTERNAL", "PORTS", "READY"}, rows)
	}
}

// compareNatural orders node-2 before node-10.
func compareNatural(a, b string) int {
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return cmp.Compare(a, b)
}
