package pki

import (
	"bytes"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func authority(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := LoadOrCreateAuthority(dir, "ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func leaf(t *testing.T, p Pair) *x509.Certificate {
	t.Helper()
	pair, err := p.TLS()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestAuthorityLasts(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir)
	b := authority(t, dir)
	if !bytes.Equal(a.CertPEM, b.CertPEM) {
		t.Error("the second load made another authority")
	}
	st, err := os.Stat(filepath.Join(dir, "ca.key"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: mode %v, error %v; want 0600", st.Mode(), err)
	}
}

func TestAuthorityDamaged(t *testing.T) {
	t.Run("no key", func(t *testing.T) {
		dir := t.TempDir()
		authority(t, dir)
		os.Remove(filepath.Join(dir, "ca.key"))
		if _, err := LoadOrCreateAuthority(dir, "ca", "test"); err == nil || !strings.Contains(err.Error(), "put it back") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("another's key", func(t *testing.T) {
		dir, other := t.TempDir(), t.TempDir()
		authority(t, dir)
		authority(t, other)
		os.Rename(filepath.Join(other, "ca.key"), filepath.Join(dir, "ca.key"))
		if _, err := LoadOrCreateAuthority(dir, "ca", "test"); err == nil || !strings.Contains(err.Error(), "do not belong together") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a key without certificate, as a crash leaves it", func(t *testing.T) {
		dir := t.TempDir()
		authority(t, dir)
		os.Remove(filepath.Join(dir, "ca.crt"))
		authority(t, dir)
	})
}

func TestClient(t *testing.T) {
	a := authority(t, t.TempDir())
	p, err := a.Client("jane", []string{"one", "two"})
	if err != nil {
		t.Fatal(err)
	}
	cert := leaf(t, p)
	if cert.Subject.CommonName != "jane" || strings.Join(cert.Subject.Organization, ",") != "one,two" {
		t.Errorf("subject %v", cert.Subject)
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: usage}); err != nil {
		t.Error(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: authority(t, t.TempDir()).Pool(), KeyUsages: usage}); err == nil {
		t.Error("another authority trusts it")
	}
}

func TestServer(t *testing.T) {
	a := authority(t, t.TempDir())
	p, err := a.Server("api", []string{"localhost", "10.0.0.9", "", "localhost"}, []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::ffff:127.0.0.1"), netip.MustParseAddr("fe80::1%eth0"), {},
	})
	if err != nil {
		t.Fatal(err)
	}
	cert := leaf(t, p)
	if len(cert.DNSNames) != 1 || len(cert.IPAddresses) != 3 {
		t.Errorf("names %v, addresses %v: want each once", cert.DNSNames, cert.IPAddresses)
	}
	for _, name := range []string{"localhost", "10.0.0.9", "127.0.0.1", "fe80::1"} {
		if err := cert.VerifyHostname(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSigningKeyLasts(t *testing.T) {
	dir := t.TempDir()
	key, pub := filepath.Join(dir, "sa.key"), filepath.Join(dir, "sa.pub")
	if _, err := LoadOrCreateKey(key, pub); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(pub)
	os.Remove(pub)
	if _, err := LoadOrCreateKey(key, pub); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(pub); !bytes.Equal(before, after) {
		t.Error("the public half changed")
	}
	os.WriteFile(key, []byte("garbage"), 0o600)
	if _, err := LoadOrCreateKey(key, pub); err == nil || !strings.Contains(err.Error(), "delete it") {
		t.Errorf("error %v", err)
	}
}
