package source

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"
)

// contentType is the encoding asked for; no other is understood.
const contentType = "application/vnd.kubernetes.protobuf"

// maxObject bounds one object or watch event. The API's own limit for a
// request is 3 MiB; what exceeds this is a broken stream.
const maxObject = 64 << 20

// client speaks to an API server by plain GETs.
type client struct {
	http *http.Client
	base *url.URL
}

func newClient(cfg *rest.Config) (*client, error) {
	c := rest.CopyConfig(cfg)
	c.Timeout = 0 // watches last
	// A list may be many megabytes, usually from near by: unpacking it costs
	// more than it saves. Watches are never compressed.
	c.DisableCompression = true
	if c.UserAgent == "" {
		c.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	hc, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("REST config for %s: %w", cfg.Host, err)
	}
	base, _, err := rest.DefaultServerUrlFor(c)
	if err != nil {
		return nil, fmt.Errorf("REST config: host %q: %w", cfg.Host, err)
	}
	return &client{http: hc, base: base}, nil
}

// get asks for path and returns the body of a 200 answer.
func (c *client) get(ctx context.Context, path string, query url.Values, accept string) (io.ReadCloser, error) {
	u := *c.base
	u.Path = strings.TrimSuffix(u.Path, "/") + path
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
		return nil, statusOf(resp.StatusCode, body)
	}
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, contentType) {
		resp.Body.Close()
		return nil, fmt.Errorf("%s answered in %q, not %s as asked: is it a Kubernetes API server?", u.Redacted(), ct, contentType)
	}
	return resp.Body, nil
}

// apiError is a refusal by the API server.
type apiError struct {
	code    int
	reason  string
	message string
}

func (e *apiError) Error() string {
	s := e.message
	if s == "" {
		s = http.StatusText(e.code)
	}
	switch e.code {
	case http.StatusForbidden:
		s += " (bind the ClusterRole system:node-proxier to this identity)"
	case http.StatusUnauthorized:
		s += " (the credentials in the kubeconfig or service account are not accepted)"
	}
	return fmt.Sprintf("API server: %d %s", e.code, s)
}

// gone reports whether the version asked for is too old to go on from.
func gone(err error) bool {
	var e *apiError
	return errors.As(err, &e) && (e.code == http.StatusGone || e.reason == "Expired")
}

// codeIs reports whether err is a refusal with one of the codes.
func codeIs(err error, codes ...int) bool {
	var e *apiError
	if errors.As(err, &e) {
		for _, c := range codes {
			if e.code == c {
				return true
			}
		}
	}
	return false
}

// statusOf makes an error of a metav1.Status in protobuf, or of any text.
func statusOf(code int, body []byte) *apiError {
	e := &apiError{code: code, message: strings.TrimSpace(string(body))}
	if kind, raw, err := envelope(body); err == nil && string(kind) == "Status" {
		e.message = ""
		w := fields(raw)
		for w.next() {
			switch w.num {
			case 3:
				e.message = string(w.data)
			case 4:
				e.reason = string(w.data)
			case 6:
				e.code = int(w.varint)
			}
		}
	}
	return e
}

// frames reads a watch: messages, each after its length in four bytes.
type frames struct {
	r   *bufio.Reader
	buf []byte
}

// next returns the next message, valid until the call after.
func (f *frames) next() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxObject {
		return nil, fmt.Errorf("watch event of %d bytes: %w", n, errWire)
	}
	return f.read(int(n))
}

func (f *frames) read(n int) ([]byte, error) {
	if cap(f.buf) < n {
		f.buf = make([]byte, n+n/2)
	}
	_, err := io.ReadFull(f.r, f.buf[:n])
	return f.buf[:n], err
}

// list reads the items of a List as they arrive and returns its metadata.
func (f *frames) list(item func(raw []byte) error) (meta listMeta, err error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(f.r, head); err != nil {
		return meta, err
	}
	if [4]byte(head) != magic {
		return meta, fmt.Errorf("list does not start with the protobuf magic %q", magic)
	}
	for { // runtime.Unknown
		num, size, err := f.field()
		if err != nil {
			return meta, err
		}
		if num == 2 {
			return meta, f.items(size, &meta, item)
		}
		if _, err := f.r.Discard(size); err != nil {
			return meta, err
		}
	}
}

type listMeta struct {
	version, next string
}

func (f *frames) items(size int, meta *listMeta, item func([]byte) error) error {
	lr := &io.LimitedReader{R: f.r, N: int64(size)}
	in := frames{r: bufio.NewReaderSize(lr, 256<<10), buf: f.buf}
	for {
		num, n, err := in.field()
		if err == io.EOF {
			if lr.N > 0 {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err != nil {
			return err
		}
		raw, err := in.read(n)
		if err != nil {
			return err
		}
		switch num {
		case 1:
			w := fields(raw)
			for w.next() {
				switch w.num {
				case 2:
					meta.version = string(w.data)
				case 3:
					meta.next = string(w.data)
				}
			}
			if w.err != nil {
				return w.err
			}
		case 2:
			if err := item(raw); err != nil {
				return err
			}
		}
	}
}

// field reads the head of a length-delimited field.
func (f *frames) field() (num, size int, err error) {
	tag, err := binary.ReadUvarint(f.r)
	if err != nil {
		return 0, 0, err
	}
	if tag&7 != wireBytes {
		return 0, 0, errWire
	}
	n, err := binary.ReadUvarint(f.r)
	if err == nil && n > 1<<32 {
		err = errWire
	}
	return int(tag >> 3), int(n), err
}
