package service

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/utils/ptr"
)

func ports(p ...corev1.ServicePort) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports = p }
}

func annotation(k, v string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations = map[string]string{k: v} }
}

// rules are all rules that a Service must keep by itself, each by an object that breaks it and the words of the refusal; and
// objects near the border that break none (no words).
var rules = []struct {
	name string
	edit func(*corev1.Service)
	err  string
}{
	{"plain", func(s *corev1.Service) {}, ""},

	// metadata
	{"name missing", func(s *corev1.Service) { s.Name = "" }, "metadata.name: Required value: name or generateName is required"},
	{"name upper case", func(s *corev1.Service) { s.Name = "Web" }, "metadata.name: Invalid value: \"Web\""},
	{"name too long", func(s *corev1.Service) { s.Name = strings.Repeat("a", 64) }, "metadata.name: Invalid value"},
	{"name 63 long", func(s *corev1.Service) { s.Name = strings.Repeat("a", 63) }, ""},
	{"name with dot", func(s *corev1.Service) { s.Name = "a.b" }, "metadata.name: Invalid value: \"a.b\""},
	{"label value", func(s *corev1.Service) { s.Labels = map[string]string{"a": "not/valid"} }, "metadata.labels: Invalid value: \"not/valid\""},
	{"annotation key", annotation("a//b", ""), "metadata.annotations: Invalid value"},
	{"topology annotations differ", func(s *corev1.Service) {
		s.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto", corev1.DeprecatedAnnotationTopologyAwareHints: "disabled"}
	}, "metadata.annotations[service.kubernetes.io/topology-mode]: Invalid value: \"Auto\": must match"},

	// type
	{"type unknown", func(s *corev1.Service) { s.Spec.Type = "Wormhole" }, "spec.type: Unsupported value: \"Wormhole\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""},
	{"headless NodePort", func(s *corev1.Service) { headless(s); s.Spec.Type = "NodePort" }, "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"},
	{"headless LoadBalancer", func(s *corev1.Service) { headless(s); s.Spec.Type = "LoadBalancer" }, "may not be set to 'None' for LoadBalancer services"},

	// ExternalName
	{"external name missing", func(s *corev1.Service) { s.Spec.Type = "ExternalName" }, "spec.externalName: Required value"},
	{"external name with dot at the end", func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = "ExternalName", "example.com." }, ""},
	{"external name invalid", func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = "ExternalName", "-x-" }, "spec.externalName: Invalid value: \"-x-\""},
	{"external with address", func(s *corev1.Service) { ofType("ExternalName")(s); s.Spec.ClusterIP = "10.96.1.1" }, "spec.clusterIPs: Forbidden: may not be set for ExternalName services"},
	{"external headless", func(s *corev1.Service) { ofType("ExternalName")(s); headless(s) }, "spec.clusterIPs: Forbidden"},
	{"external with policy", func(s *corev1.Service) { ofType("ExternalName")(s); s.Spec.IPFamilyPolicy = ptr.To(single) }, "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services"},
	{"external with families", func(s *corev1.Service) { ofType("ExternalName")(s); s.Spec.IPFamilies = []corev1.IPFamily{v4} }, "spec.ipFamilies: Forbidden"},
	{"external without ports", func(s *corev1.Service) { ofType("ExternalName")(s); s.Spec.Ports = nil }, ""},

	// ports
	{"no ports", ports(), "spec.ports: Required value"},
	{"headless without ports", func(s *corev1.Service) { headless(s); s.Spec.Ports = nil }, ""},
	{"port 0", ports(corev1.ServicePort{}), "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"},
	{"port negative", ports(corev1.ServicePort{Port: -1}), "spec.ports[0].port: Invalid value: -1"},
	{"port 65536", ports(corev1.ServicePort{Port: 65536}), "spec.ports[0].port: Invalid value: 65536"},
	{"port 65535", ports(corev1.ServicePort{Port: 65535}), ""},
	{"protocol unknown", ports(corev1.ServicePort{Port: 1, Protocol: "ICMP"}), "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\""},
	{"SCTP", ports(corev1.ServicePort{Port: 1, Protocol: "SCTP"}), ""},
	{"two ports, one without name", ports(corev1.ServicePort{Name: "a", Port: 1}, corev1.ServicePort{Port: 2}), "spec.ports[1].name: Required value"},
	{"two ports of one name", ports(corev1.ServicePort{Name: "a", Port: 1}, corev1.ServicePort{Name: "a", Port: 2}), "spec.ports[1].name: Duplicate value: \"a\""},
	{"port name invalid", ports(corev1.ServicePort{Name: "A_b", Port: 1}), "spec.ports[0].name: Invalid value: \"A_b\""},
	{"same port twice", ports(corev1.ServicePort{Name: "a", Port: 1}, corev1.ServicePort{Name: "b", Port: 1}), "spec.ports[1]: Duplicate value"},
	{"same port of two protocols", ports(corev1.ServicePort{Name: "a", Port: 1}, corev1.ServicePort{Name: "b", Port: 1, Protocol: "UDP"}), ""},
	{"target port 0x", ports(corev1.ServicePort{Port: 1, TargetPort: intstr.FromInt32(70000)}), "spec.ports[0].targetPort: Invalid value: 70000"},
	{"target port named", ports(corev1.ServicePort{Port: 1, TargetPort: intstr.FromString("http")}), ""},
	{"target port badly named", ports(corev1.ServicePort{Port: 1, TargetPort: intstr.FromString("this-is-too-long")}), "spec.ports[0].targetPort: Invalid value: \"this-is-too-long\""},
	{"app protocol", ports(corev1.ServicePort{Port: 1, AppProtocol: ptr.To("kubernetes.io/h2c")}), ""},
	{"app protocol invalid", ports(corev1.ServicePort{Port: 1, AppProtocol: ptr.To("a/b/c")}), "spec.ports[0].appProtocol: Invalid value: \"a/b/c\""},
	{"node port of a ClusterIP", ports(corev1.ServicePort{Port: 1, NodePort: 30001}), "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"},
	{"same node port twice", func(s *corev1.Service) {
		s.Spec.Type = "NodePort"
		ports(corev1.ServicePort{Name: "a", Port: 1, NodePort: 30001}, corev1.ServicePort{Name: "b", Port: 2, NodePort: 30001})(s)
	}, "spec.ports[1].nodePort: Duplicate value: 30001"},
	{"same node port of two protocols", func(s *corev1.Service) {
		s.Spec.Type = "NodePort"
		ports(corev1.ServicePort{Name: "a", Port: 1, NodePort: 30001}, corev1.ServicePort{Name: "b", Port: 1, NodePort: 30001, Protocol: "UDP"})(s)
	}, ""},
	{"same node port of two protocols and ports", func(s *corev1.Service) {
		s.Spec.Type = "NodePort"
		ports(corev1.ServicePort{Name: "a", Port: 1, NodePort: 30001}, corev1.ServicePort{Name: "b", Port: 2, NodePort: 30001, Protocol: "UDP"})(s)
	}, "spec.ports[1].nodePort: Invalid value: 30001: provided port is already allocated, for port 1"},
	{"node port out of range", func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = "NodePort", 29999 }, "spec.ports[0].nodePort: Invalid value: 29999: provided port is not in the valid range. The range of valid ports is 30000-32767"},
	{"node port negative", func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = "NodePort", -1 }, "spec.ports[0].nodePort: Invalid value: -1"},

	// selector and affinity
	{"selector key", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"a//b": "c"} }, "spec.selector: Invalid value: \"a//b\""},
	{"selector value", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"a": "c/d"} }, "spec.selector: Invalid value: \"c/d\""},
	{"affinity unknown", func(s *corev1.Service) { s.Spec.SessionAffinity = "Cookie" }, "spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\""},
	{"affinity timeout", affinity(86400), ""},
	{"affinity timeout too long", affinity(86401), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401"},
	{"affinity timeout 0", affinity(0), "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0"},

	// addresses
	{"address invalid", withIPs("10.96.0.256"), "spec.clusterIPs[0]: Invalid value: \"10.96.0.256\""},
	{"address outside", withIPs("10.97.0.1"), "spec.clusterIPs: Invalid value: [\"10.97.0.1\"]: failed to allocate IP 10.97.0.1: the provided IP (10.97.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/16"},
	{"network address", withIPs("10.96.0.0"), "is not in the valid range"},
	{"broadcast address", withIPs("10.96.255.255"), "is not in the valid range"},
	{"last address", withIPs("10.96.255.254"), ""},
	{"IPv6 network address", withIPs("fd00:10:96::"), "is not in the valid range"},
	{"last IPv6 address", withIPs("fd00:10:96::ffff"), ""},
	{"None and an address", withIPs("None", "10.96.1.1"), "spec.clusterIPs: Invalid value: [\"None\",\"10.96.1.1\"]: 'None' must be the first and only value"},
	{"three addresses", withIPs("10.96.1.1", "fd00:10:96::1", "10.96.1.2"), "may only hold up to 2 values"},
	{"clusterIPs without clusterIP", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"10.96.1.1"} }, "spec.clusterIPs: Invalid value: [\"10.96.1.1\"]: must be empty when `clusterIP` is not specified"},
	{"clusterIP is not the first", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.96.1.2", []string{"10.96.1.1"} }, "first value must match `clusterIP`"},

	// external addresses and load balancers
	{"external address", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"203.0.113.7", "2001:db8::7"} }, ""},
	{"external address invalid", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"host"} }, "spec.externalIPs[0]: Invalid value: \"host\""},
	{"external address loopback", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"127.0.0.1"} }, "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range"},
	{"external address unspecified", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"0.0.0.0"} }, "may not be unspecified"},
	{"external address link-local", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"169.254.1.1"} }, "may not be in the link-local range"},
	{"external address multicast", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"224.0.0.9"} }, "may not be in the link-local multicast range"},
	{"source ranges", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.LoadBalancerSourceRanges = "LoadBalancer", []string{" 10.0.0.0/8 ", "2001:db8::/32"}
	}, ""},
	{"source range invalid", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.LoadBalancerSourceRanges = "LoadBalancer", []string{"10.0.0.1"}
	}, "spec.LoadBalancerSourceRanges[0]: Invalid value: \"10.0.0.1\""},
	{"source range of a ClusterIP", func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8"} }, "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'"},
	{"source range annotation of a ClusterIP", annotation(corev1.AnnotationLoadBalancerSourceRangesKey, "10.0.0.0/8"), "Forbidden: may only be used when `type` is 'LoadBalancer'"},
	{"source range annotation invalid", func(s *corev1.Service) {
		s.Spec.Type = "LoadBalancer"
		annotation(corev1.AnnotationLoadBalancerSourceRangesKey, "10.0.0.0/8,x")(s)
	}, "metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: Invalid value: \"x\""},
	{"class", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.LoadBalancerClass = "LoadBalancer", ptr.To("example.com/lb")
	}, ""},
	{"class invalid", func(s *corev1.Service) { s.Spec.Type, s.Spec.LoadBalancerClass = "LoadBalancer", ptr.To("a/b/c") }, "spec.loadBalancerClass: Invalid value: \"a/b/c\""},
	{"class of a NodePort", func(s *corev1.Service) { s.Spec.Type, s.Spec.LoadBalancerClass = "NodePort", ptr.To("lb") }, "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'"},
	{"allocateLoadBalancerNodePorts of a NodePort", func(s *corev1.Service) { s.Spec.Type, s.Spec.AllocateLoadBalancerNodePorts = "NodePort", ptr.To(true) }, "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'"},

	// traffic
	{"external policy of a ClusterIP", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "Local" }, "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services"},
	{"external policy of a ClusterIP with external addresses", func(s *corev1.Service) {
		s.Spec.ExternalTrafficPolicy, s.Spec.ExternalIPs = "Local", []string{"203.0.113.7"}
	}, ""},
	{"external policy unknown", func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalTrafficPolicy = "NodePort", "Near" }, "spec.externalTrafficPolicy: Unsupported value: \"Near\": supported values: \"Cluster\", \"Local\""},
	{"internal policy unknown", func(s *corev1.Service) {
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicy("Near"))
	}, "spec.internalTrafficPolicy: Unsupported value: \"Near\""},
	{"internal policy Local", func(s *corev1.Service) {
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}, ""},
	{"distribution unknown", func(s *corev1.Service) { s.Spec.TrafficDistribution = ptr.To("Random") }, "spec.trafficDistribution: Unsupported value: \"Random\""},
	{"distribution PreferClose", func(s *corev1.Service) { s.Spec.TrafficDistribution = ptr.To("PreferClose") }, ""},
	{"distribution PreferSameNode", func(s *corev1.Service) { s.Spec.TrafficDistribution = ptr.To("PreferSameNode") }, ""},
	{"health check port of a ClusterIP", func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 30009 }, "spec.healthCheckNodePort: Invalid value: 30009: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"},
	{"health check port, policy Cluster", func(s *corev1.Service) { s.Spec.Type, s.Spec.HealthCheckNodePort = "LoadBalancer", 30009 }, "spec.healthCheckNodePort: Invalid value: 30009"},
	{"health check port", healthCheck(30009), ""},
	{"health check port out of range", healthCheck(80), "spec.healthCheckNodePort: Invalid value: 80: failed to allocate requested HealthCheck NodePort 80: provided port is not in the valid range"},
	{"health check port not a port", healthCheck(70000), "spec.healthCheckNodePort: Invalid value: 70000: must be between 1 and 65535, inclusive"},
	{"health check port is a node port too", func(s *corev1.Service) { healthCheck(30009)(s); s.Spec.Ports[0].NodePort = 30009 }, "spec.healthCheckNodePort: Invalid value: 30009: provided port is already allocated"},
	{"publishNotReadyAddresses", func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }, ""},
	{"loadBalancerIP", func(s *corev1.Service) { s.Spec.Type, s.Spec.LoadBalancerIP = "LoadBalancer", "203.0.113.9" }, ""},
}

func affinity(seconds int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

func healthCheck(port int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = "LoadBalancer", "Local", port
	}
}

func TestRulesOnCreate(t *testing.T) {
	c := newCluster(t)
	for _, tt := range rules {
		t.Run(tt.name, func(t *testing.T) {
			c.t = t
			got, err := c.create(svc("s", tt.edit))
			checkRefusal(t, err, tt.err)
			if err == nil {
				c.checkAudit()
				c.checkGone(got.Name)
			}
			c.checkAudit()
			if n := len(c.services()); n != 0 {
				t.Fatalf("%d Services stored", n)
			}
		})
	}
}

// TestRulesOnUpdate: a Service that keeps the rules is changed to one that does not, by PUT; and stays as it was.
func TestRulesOnUpdate(t *testing.T) {
	c := newCluster(t)
	c.mustCreate(svc("s"))
	for _, tt := range rules {
		if strings.HasPrefix(tt.name, "name ") {
			continue // the name is in the URL
		}
		t.Run(tt.name, func(t *testing.T) {
			c.t = t
			before, err := c.get("s")
			if err != nil {
				t.Fatal(err)
			}
			to := svc("s", tt.edit)
			want := tt.err
			// Asking for another address than one's own is refused as such.
			switch {
			case tt.name == "external with policy", tt.name == "external with families":
				want = "" // what the Service has had is dropped, not refused
			case to.Spec.Type == corev1.ServiceTypeExternalName:
			case tt.name == "same node port of two protocols and ports":
				want = "" // upstream refuses it only on create
			case tt.name == "clusterIPs without clusterIP":
				want = "first value must match `clusterIP`" // which is carried over
			case to.Spec.ClusterIP == corev1.ClusterIPNone && want == "",
				to.Spec.ClusterIP != "" && (want == "" || strings.Contains(want, "not in the valid range")):
				want = "may not change once set"
			}
			_, err = c.put(to)
			checkRefusal(t, err, want)
			c.checkAudit()
			if err != nil {
				after, _ := c.get("s")
				if after.ResourceVersion != before.ResourceVersion {
					t.Error("a refused update changed the Service")
				}
				return
			}
			c.checkGone("s")
			c.mustCreate(svc("s"))
		})
	}
}

func checkRefusal(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && err == nil:
		t.Errorf("not refused, want %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("refused with %q, want %q", err, want)
	case want != "" && !apierrors.IsInvalid(err):
		t.Errorf("refused with %v, want Invalid", err)
	}
}

// TestImmutable: what may not change while a Service lives.
func TestImmutable(t *testing.T) {
	lbClass := func(c string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.Type, s.Spec.LoadBalancerClass = "LoadBalancer", ptr.To(c) }
	}
	for _, tt := range []struct {
		name         string
		before, edit func(*corev1.Service)
		err          string
	}{
		{"class changed", lbClass("a"), lbClass("b"), "spec.loadBalancerClass: Invalid value: \"b\": may not change once set"},
		{"class cleared", lbClass("a"), func(s *corev1.Service) { s.Spec.LoadBalancerClass = nil }, "may not change once set"},
		{"class added", ofType("LoadBalancer"), lbClass("b"), "may not change once set"},
		{"class with the type", ofType("ClusterIP"), lbClass("b"), ""},
		{"class goes with the type", lbClass("a"), ofType("NodePort"), ""},
		{"class set where it does not belong", lbClass("a"), func(s *corev1.Service) {
			s.Spec.Type, s.Spec.LoadBalancerClass = "NodePort", ptr.To("b")
		}, "spec.loadBalancerClass: Forbidden"},
		{"health check port changed", healthCheck(30009), healthCheck(30010), "spec.healthCheckNodePort: Forbidden: field is immutable"},
		{"health check port left out", healthCheck(30009), func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 0 }, ""},
		{"name", ofType("ClusterIP"), func(s *corev1.Service) { s.Name = "t" }, "metadata.name: Invalid value: \"t\": field is immutable"},
		{"uid", ofType("ClusterIP"), func(s *corev1.Service) { s.UID = "5" }, "metadata.uid: Invalid value: \"5\": field is immutable"},
		{"node port cleared where it must be", ofType("NodePort"), func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 0 }, ""},
		{"node port moved and type too", ofType("NodePort"), func(s *corev1.Service) {
			s.Spec.Type = "ClusterIP"
			s.Spec.Ports[0].NodePort++
		}, "spec.ports[0].nodePort: Forbidden"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			c.mustCreate(svc("s", tt.before))
			_, err := c.edit("s", tt.edit)
			switch {
			case tt.err == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error %v, want one with %q", err, tt.err)
			}
			c.checkAudit()
		})
	}
}

// TestStatus: what may be written to services/status, and by what.
func TestStatus(t *testing.T) {
	ingress := func(ing ...core.LoadBalancerIngress) func(*core.Service) {
		return func(s *core.Service) { s.Status.LoadBalancer.Ingress = ing }
	}
	vip := ptr.To(core.LoadBalancerIPModeVIP)
	for _, tt := range []struct {
		name string
		typ  corev1.ServiceType
		edit func(*core.Service)
		err  string
	}{
		{"address", "LoadBalancer", ingress(core.LoadBalancerIngress{IP: "192.0.2.1", IPMode: vip}), ""},
		{"address, mode Proxy", "LoadBalancer", ingress(core.LoadBalancerIngress{IP: "2001:db8::1", IPMode: ptr.To(core.LoadBalancerIPModeProxy)}), ""},
		{"host name", "LoadBalancer", ingress(core.LoadBalancerIngress{Hostname: "lb.example.com"}), ""},
		{"condition", "ClusterIP", func(s *core.Service) {
			s.Status.Conditions = []metav1.Condition{{Type: "Ready", Status: "True", Reason: "R", LastTransitionTime: metav1.Now()}}
		}, ""},
		{"spec is not written", "LoadBalancer", func(s *core.Service) { s.Spec.Ports[0].NodePort = 31000 }, ""},
		{"of a ClusterIP", "ClusterIP", ingress(core.LoadBalancerIngress{IP: "192.0.2.1", IPMode: vip}), "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"},
		{"address invalid", "LoadBalancer", ingress(core.LoadBalancerIngress{IP: "x", IPMode: vip}), "status.loadBalancer.ingress[0].ip: Invalid value: \"x\""},
		{"mode missing", "LoadBalancer", ingress(core.LoadBalancerIngress{IP: "192.0.2.1"}), "status.loadBalancer.ingress[0].ipMode: Required value: must be specified when `ip` is set"},
		{"mode unknown", "LoadBalancer", ingress(core.LoadBalancerIngress{IP: "192.0.2.1", IPMode: ptr.To(core.LoadBalancerIPMode("X"))}), "ipMode: Unsupported value"},
		{"mode without address", "LoadBalancer", ingress(core.LoadBalancerIngress{Hostname: "a.b", IPMode: vip}), "ipMode: Forbidden: may not be specified when `ip` is not set"},
		{"host name is an address", "LoadBalancer", ingress(core.LoadBalancerIngress{Hostname: "192.0.2.1"}), "hostname: Invalid value: \"192.0.2.1\": must be a DNS name, not an IP address"},
		{"annotation", "ClusterIP", func(s *core.Service) { s.Annotations = map[string]string{"a": "b"} }, ""},
		{"annotations that differ", "ClusterIP", func(s *core.Service) {
			s.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto", corev1.DeprecatedAnnotationTopologyAwareHints: "disabled"}
		}, "metadata.annotations[service.kubernetes.io/topology-mode]: Invalid value"},
		{"host name invalid", "LoadBalancer", ingress(core.LoadBalancerIngress{Hostname: "_"}), "hostname: Invalid value: \"_\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			before := c.mustCreate(svc("s", ofType(tt.typ)))
			obj := before.DeepCopy()
			tt.edit(obj)
			out, _, err := c.reg.status.Update(c.ctx, "s", rest.DefaultUpdatedObjectInfo(obj), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
			checkRefusal(t, err, tt.err)
			if err != nil {
				return
			}
			after := out.(*core.Service)
			if after.Spec.Ports[0].NodePort != before.Spec.Ports[0].NodePort {
				t.Error("a write of the status changed the spec")
			}
			c.checkAudit()
			// A write of the spec keeps the status, until there is no load balancer any more.
			kept, err := c.put(svc("s", ofType(tt.typ)))
			if err != nil {
				t.Fatal(err)
			}
			if len(kept.Status.LoadBalancer.Ingress) != len(after.Status.LoadBalancer.Ingress) || len(kept.Status.Conditions) != len(after.Status.Conditions) {
				t.Errorf("status %v became %v by a write of the spec", after.Status, kept.Status)
			}
			gone, err := c.edit("s", ofType("ClusterIP"))
			if err != nil {
				t.Fatal(err)
			}
			if len(gone.Status.LoadBalancer.Ingress) > 0 {
				t.Errorf("status %v of a ClusterIP", gone.Status)
			}
		})
	}
}

// TestDefaults: what a Service has that says nothing of it.
func TestDefaults(t *testing.T) {
	c := newCluster(t)
	got := external(c.mustCreate(svc("s", ofType("LoadBalancer"), func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }))).Spec
	for name, ok := range map[string]bool{
		"protocol":                      got.Ports[0].Protocol == corev1.ProtocolTCP,
		"targetPort":                    got.Ports[0].TargetPort == intstr.FromInt32(80),
		"sessionAffinityConfig":         *got.SessionAffinityConfig.ClientIP.TimeoutSeconds == 10800,
		"internalTrafficPolicy":         *got.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyCluster,
		"externalTrafficPolicy":         got.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyCluster,
		"allocateLoadBalancerNodePorts": *got.AllocateLoadBalancerNodePorts,
		"ipFamilyPolicy":                *got.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack,
		"ipFamilies":                    len(got.IPFamilies) == 1 && got.IPFamilies[0] == v4,
		"clusterIPs":                    len(got.ClusterIPs) == 1 && got.ClusterIPs[0] == got.ClusterIP,
	} {
		if !ok {
			t.Errorf("%s has not its default", name)
		}
	}
	if got := c.mustCreate(svc("e", ofType("ExternalName"))); got.Spec.InternalTrafficPolicy != nil || got.Spec.Type != core.ServiceTypeExternalName {
		t.Errorf("ExternalName: %+v", got.Spec)
	}
}
