package apiserver

import (
	"crypto"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/server/egressselector"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/kubernetes/pkg/cluster/ports"
	"k8s.io/kubernetes/pkg/controlplane/apiserver/options"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
)

// secrets are the files that upstream's options want to read, and what others want of them.
type secrets struct {
	servingCert, servingKey       string
	clientCA                      string
	frontProxyCA                  string
	frontProxyCert, frontProxyKey string
	kubeletCert, kubeletKey       string
	tokenKey, tokenPublicKey      string

	tokenSigner crypto.Signer // what tokenKey holds
}

const frontProxyUser = "front-proxy-client"

// admission names the admission plugins that run besides those that upstream
// has on by default, and those of the default that do not.
var admission = struct{ on, off []string }{
	on:  []string{"NodeRestriction"},
	off: nil,
}

// upstreamOptions translates our Options into upstream's.
func upstreamOptions(o Options, l *multiListener, store dialer, sec secrets) *options.Options {
	u := options.NewOptions()
	advertise := net.IP(o.AdvertiseAddress.AsSlice())
	if advertise == nil {
		// Not announced to anyone (see kubernetesService), only put into discovery
		// documents.
		advertise = net.IPv4(127, 0, 0, 1)
	}

	u.GenericServerRunOptions.AdvertiseAddress = advertise
	u.GenericServerRunOptions.ExternalHost = advertise.String()
	u.SystemNamespaces = append(u.SystemNamespaces, "kube-node-lease")

	u.SecureServing.Listener = l
	u.SecureServing.BindPort = l.Addr().(*net.TCPAddr).Port
	u.SecureServing.ServerCert.CertKey = genericoptions.CertKey{CertFile: sec.servingCert, KeyFile: sec.servingKey}

	u.Etcd.StorageConfig.Transport.ServerList = o.EtcdServers
	u.Etcd.StorageConfig.Transport.TrustedCAFile = o.EtcdCAFile
	u.Etcd.StorageConfig.Transport.CertFile = o.EtcdCertFile
	u.Etcd.StorageConfig.Transport.KeyFile = o.EtcdKeyFile
	// Counting all objects of every kind each minute serves a metric, and
	// priority and fairness, which is off.
	u.Etcd.StorageConfig.CountMetricPollPeriod = 0
	if store != nil {
		u.Etcd.StorageConfig.Transport.EgressLookup = func(egressselector.NetworkContext) (utilnet.DialFunc, error) {
			return store.DialContext, nil
		}
	}

	auth := u.Authentication
	auth.Anonymous.Allow = false // see allowAnonymous for what they may see
	auth.ClientCert.ClientCA = sec.clientCA
	auth.RequestHeader.ClientCAFile = sec.frontProxyCA
	auth.RequestHeader.AllowedNames = []string{frontProxyUser}
	auth.RequestHeader.UsernameHeaders = []string{"X-Remote-User"}
	auth.RequestHeader.GroupHeaders = []string{"X-Remote-Group"}
	auth.RequestHeader.ExtraHeaderPrefixes = []string{"X-Remote-Extra-"}
	auth.ServiceAccounts.Issuers = []string{"https://kubernetes.default.svc." + o.ClusterDomain}
	auth.ServiceAccounts.KeyFiles = []string{sec.tokenPublicKey}
	u.ServiceAccountSigningKeyFile = sec.tokenKey
	u.ProxyClientCertFile = sec.frontProxyCert
	u.ProxyClientKeyFile = sec.frontProxyKey

	u.Authorization.Modes = []string{"Node", "RBAC"}
	u.Admission.GenericAdmission.EnablePlugins = admission.on
	u.Admission.GenericAdmission.DisablePlugins = admission.off
	u.Features.EnablePriorityAndFairness = false
	u.Features.EnableProfiling = false
	return u
}

// kubeletClient is how the server reaches the agents of nodes.
func kubeletClient(sec secrets) kubeletclient.KubeletClientConfig {
	return kubeletclient.KubeletClientConfig{
		Port:                  ports.KubeletPort,
		PreferredAddressTypes: []string{"InternalIP", "ExternalIP", "Hostname"},
		HTTPTimeout:           5 * time.Second,
		TLSClientConfig: kubeletclient.KubeletTLSConfig{
			CertFile: sec.kubeletCert,
			KeyFile:  sec.kubeletKey,
			CAFile:   sec.clientCA,
		},
	}
}

// servingNames returns the names and addresses that the serving certificate is for.
func servingNames(o Options, listening []netip.AddrPort) (names []string, addrs []netip.Addr) {
	const svc = "kubernetes.default.svc"
	names = append(names, "localhost", hostname(), "kubernetes", "kubernetes.default", svc, svc+"."+o.ClusterDomain)
	names = append(names, o.SANs...)
	addrs = append(addrs, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), o.AdvertiseAddress)
	for _, c := range o.ServiceCIDRs {
		addrs = append(addrs, c.Masked().Addr().Next())
	}
	for _, l := range listening {
		if l.Addr().IsUnspecified() {
			addrs = append(addrs, interfaceAddrs()...)
		} else {
			addrs = append(addrs, l.Addr())
		}
	}
	return names, slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() })
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func checkEtcdServers(urls []string) error {
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("etcd server %q: want a URL such as https://10.0.0.1:2379", s)
		}
	}
	return nil
}
