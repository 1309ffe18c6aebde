// Package pki keeps the keys and certificates of one Fairway instance: the
// certificate authority that clients and servers trust, the authority for
// aggregated API servers, and the key that signs ServiceAccount tokens.
//
// In goes a directory; out come files in it (made once, kept for good) and
// certificates signed in memory. It knows nothing of Kubernetes objects and
// opens no sockets.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

const (
	// authorityLife is how long a certificate authority is valid.
	authorityLife = 10 * 365 * 24 * time.Hour
	// leafLife is how long every other certificate is valid. Certificates of
	// Fairway's own parts are signed anew at each start.
	leafLife = 365 * 24 * time.Hour
	// clockSkew is how far a certificate's validity starts in the past, for
	// clients whose clock is behind.
	clockSkew = 5 * time.Minute
)

// Authority is a certificate authority: a self-signed certificate and its key.
// It may be used by several goroutines at once.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	// CertFile holds the certificate, PEM encoded.
	CertFile string
	// CertPEM is the content of CertFile.
	CertPEM []byte
}

// LoadOrCreateAuthority returns the authority in dir/name.crt and dir/name.key,
// and makes both when there is no such certificate yet. The key is written
// first and both files are put in place whole, so that a crash between the two leaves
// nothing that the next start would trip over.
func LoadOrCreateAuthority(dir, name, commonName string) (*Authority, error) {
	certFile := filepath.Join(dir, name+".crt")
	keyFile := filepath.Join(dir, name+".key")
	certPEM, err := os.ReadFile(certFile)
	if errors.Is(err, fs.ErrNotExist) {
		return createAuthority(certFile, keyFile, commonName)
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority key: %w; put it back, or delete %s to begin with a new authority", err, dir)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s and its key do not belong together: %w; delete %s to begin with a new authority", certFile, err, dir)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", certFile, err)
	}
	if time.Now().After(cert.NotAfter) {
		return nil, fmt.Errorf("certificate authority %s ended on %s; delete %s to begin with a new one", certFile, cert.NotAfter.Format(time.DateOnly), dir)
	}
	return &Authority{cert: cert, key: pair.PrivateKey.(crypto.Signer), CertFile: certFile, CertPEM: certPEM}, nil
}

func createAuthority(certFile, keyFile, commonName string) (*Authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if err := setSerialAndTimes(template, authorityLife); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority %s: %w", commonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := encodeCert(der)
	if err := writeFile(keyFile, keyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := writeFile(certFile, certPEM, 0o644); err != nil {
		return nil, err
	}
	return &Authority{cert: cert, key: key, CertFile: certFile, CertPEM: certPEM}, nil
}

// Pool returns a pool that trusts this authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Pair is a certificate and its key, PEM encoded.
type Pair struct{ Cert, Key []byte }

// TLS returns the pair as crypto/tls wants it.
func (p Pair) TLS() (tls.Certificate, error) { return tls.X509KeyPair(p.Cert, p.Key) }

// Write stores the pair in two files, the key with mode 0600.
func (p Pair) Write(certFile, keyFile string) error {
	if err := writeFile(keyFile, p.Key, 0o600); err != nil {
		return err
	}
	return writeFile(certFile, p.Cert, 0o644)
}

// Client signs a certificate that authenticates a client. Kubernetes reads the
// user name from the common name and the groups from the organisations.
func (a *Authority) Client(user string, groups []string) (Pair, error) {
	return a.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// Server signs a certificate for a server that answers to these names and
// addresses. Names may hold addresses in text form too; repeats are dropped.
func (a *Authority) Server(commonName string, names []string, addrs []netip.Addr) (Pair, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: commonName},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	seenName, seenAddr := map[string]bool{}, map[netip.Addr]bool{}
	addAddr := func(ip netip.Addr) {
		ip = ip.Unmap().WithZone("")
		if ip.IsValid() && !seenAddr[ip] {
			seenAddr[ip] = true
			template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
		}
	}
	for _, name := range names {
		if ip, err := netip.ParseAddr(name); err == nil {
			addAddr(ip)
		} else if name != "" && !seenName[name] {
			seenName[name] = true
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	for _, ip := range addrs {
		addAddr(ip)
	}
	return a.sign(template)
}

func (a *Authority) sign(template *x509.Certificate) (Pair, error) {
	key, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	if err := setSerialAndTimes(template, leafLife); err != nil {
		return Pair{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate for %s: %w", template.Subject.CommonName, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: encodeCert(der), Key: keyPEM}, nil
}

// LoadOrCreateKey makes sure that file holds a private key and pubFile its
// public half, and returns the key. The tokens of ServiceAccounts are signed
// with it, so it has to outlive restarts.
func LoadOrCreateKey(file, pubFile string) (key crypto.Signer, err error) {
	keyPEM, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if key, err = newKey(); err != nil {
			return nil, err
		}
		if keyPEM, err = encodeKey(key); err != nil {
			return nil, err
		}
		if err := writeFile(file, keyPEM, 0o600); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("read signing key: %w", err)
	default:
		block, _ := pem.Decode(keyPEM)
		if block == nil {
			return nil, fmt.Errorf("signing key %s holds no PEM block; delete it to begin with a new one", file)
		}
		if key, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
			return nil, fmt.Errorf("signing key %s: %w; delete it to begin with a new one", file, err)
		}
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	return key, writeFile(pubFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}

func newKey() (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

func setSerialAndTimes(template *x509.Certificate, life time.Duration) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	now := time.Now()
	template.SerialNumber = serial
	template.NotBefore = now.Add(-clockSkew)
	template.NotAfter = now.Add(life)
	return nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// writeFile puts data in place in one step: a reader sees the old file or the
// whole new one, also after a power cut.
func writeFile(file string, data []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return os.Rename(tmp.Name(), file)
}
