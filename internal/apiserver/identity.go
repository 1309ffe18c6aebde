package apiserver

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Identity is who a client is: what its certificate says.
type Identity struct {
	User   string
	Groups []string
}

// Users of Fairway's own parts. What each may do is in rbac.go.
const (
	userLB        = "system:fairway:lb"
	userDNS       = "system:fairway:dns"
	userEndpoints = "system:fairway:endpoints"
)

// Admin may do everything.
func Admin() Identity {
	return Identity{User: "fairway-admin", Groups: []string{"system:masters"}}
}

// Node is the agent of the node of that name; the Node authorizer lets it see
// and change what concerns the node and no more.
func Node(name string) Identity {
	return Identity{User: "system:node:" + name, Groups: []string{"system:nodes"}}
}

// Proxy is the Service data plane of the nodes.
func Proxy() Identity { return Identity{User: "system:kube-proxy"} }

// Scheduler places Pods on nodes.
func Scheduler() Identity { return Identity{User: "system:kube-scheduler"} }

// Controllers is the manager of the workload controllers.
func Controllers() Identity { return Identity{User: "system:kube-controller-manager"} }

// Controller is one of upstream's workload controllers, by upstream's name for
// it such as "deployment-controller": the ServiceAccount that upstream's own
// policy gives that controller's rights to.
func Controller(name string) Identity {
	return Identity{
		User:   "system:serviceaccount:kube-system:" + name,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system"},
	}
}

// LB gives Services of type LoadBalancer their addresses and announces them.
func LB() Identity { return Identity{User: userLB} }

// DNS answers for the names of Services and Pods.
func DNS() Identity { return Identity{User: userDNS} }

// Endpoints turns the selectors of Services into EndpointSlices.
func Endpoints() Identity { return Identity{User: userEndpoints} }

// ClientConfig returns a configuration for a client in this process. Its
// requests are not throttled on the client's side.
func (s *Server) ClientConfig(id Identity) (*rest.Config, error) {
	pair, err := s.ca.Client(id.User, id.Groups)
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:      s.url,
		UserAgent: "fairway",
		QPS:       -1,
		TLSClientConfig: rest.TLSClientConfig{
			CAData:   s.ca.CertPEM,
			CertData: pair.Cert,
			KeyData:  pair.Key,
		},
	}, nil
}

// KubeconfigFor returns a kubeconfig file for id that reaches the server at
// the URL server, or at its first listening address if that is empty. It holds
// a private key: store it with mode 0600.
func (s *Server) KubeconfigFor(id Identity, server string) ([]byte, error) {
	pair, err := s.ca.Client(id.User, id.Groups)
	if err != nil {
		return nil, err
	}
	if server == "" {
		server = s.url
	}
	const name = "fairway"
	return clientcmd.Write(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{
			name: {Server: server, CertificateAuthorityData: s.ca.CertPEM},
		},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{
			id.User: {ClientCertificateData: pair.Cert, ClientKeyData: pair.Key},
		},
		Contexts: map[string]*clientcmdapi.Context{
			name: {Cluster: name, AuthInfo: id.User},
		},
		CurrentContext: name,
	})
}

// NodeServingCert returns a certificate for the HTTPS server of a node's
// agent, which the API server dials for logs, exec, attach and port-forward at
// the node's InternalIP.
func (s *Server) NodeServingCert(nodeName string, ips []netip.Addr) (tls.Certificate, error) {
	pair, err := s.ca.Server("system:node:"+nodeName, []string{nodeName}, ips)
	if err != nil {
		return tls.Certificate{}, err
	}
	return pair.TLS()
}

// ClientCAs returns the authorities whose client certificates a node's agent
// should accept. The API server shows it a certificate for the user
// KubeletClientUser.
func (s *Server) ClientCAs() *x509.CertPool { return s.ca.Pool() }

// CACert returns the certificate of the authority that signs everything here, PEM
// encoded: what Pods find in the ConfigMap kube-root-ca.crt.
func (s *Server) CACert() []byte { return s.ca.CertPEM }

// TokenKey signs the tokens of ServiceAccounts: what a controller needs that
// fills Secrets of type kubernetes.io/service-account-token.
func (s *Server) TokenKey() crypto.Signer { return s.tokenKey }

// KubeletClientUser is who the API server is to the agents of nodes.
const KubeletClientUser = "kube-apiserver-kubelet-client"

// serverURL is where our own clients reach the first address of l.
func serverURL(l net.Addr) (string, error) {
	ap, err := netip.ParseAddrPort(l.String())
	if err != nil {
		return "", fmt.Errorf("listening address %s: %w", l, err)
	}
	host := ap.Addr().Unmap()
	if host.IsUnspecified() {
		// A wildcard in either family takes IPv4 loopback: Linux' IPv6
		// wildcard sockets accept both families.
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return "https://" + netip.AddrPortFrom(host, ap.Port()).String(), nil
}
