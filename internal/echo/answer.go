package echo

import (
	"encoding/json"
	"strings"
)

// Answer is what every request is answered with. As text it is one line of
// key=value pairs in this order, the HTTP fields left out; as JSON all of it.
type Answer struct {
	Pod       string `json:"pod"`
	Namespace string `json:"namespace,omitempty"`
	Node      string `json:"node,omitempty"`
	// Address is the server's own end of the connection, address:port.
	Address string `json:"address"`
	// Client is the other end as the server sees it, after any translation.
	Client   string `json:"client"`
	Protocol string `json:"protocol"` // http, tcp or udp

	Method  string              `json:"method,omitempty"`
	Host    string              `json:"host,omitempty"`
	Path    string              `json:"path,omitempty"`
	Headers map[string][]string `json:"headers,omitempty"`
	// Body is what the request carried, as text, at most 64 KiB of it.
	Body string `json:"body,omitempty"`
}

func (s *Server) answer(protocol, address, client string) Answer {
	id := s.opts.Identity
	return Answer{Pod: id.Pod, Namespace: id.Namespace, Node: id.Node, Address: address, Client: client, Protocol: protocol}
}

// Text is the answer as one line, newline included.
func (a Answer) Text() []byte {
	var b strings.Builder
	for _, f := range [...]struct{ key, value string }{
		{"pod", a.Pod}, {"node", a.Node}, {"address", a.Address}, {"client", a.Client}, {"protocol", a.Protocol},
	} {
		if f.value == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(f.key)
		b.WriteByte('=')
		b.WriteString(f.value)
	}
	b.WriteByte('\n')
	return []byte(b.String())
}

// parseAnswer reads an answer of either form; !ok if it is none.
func parseAnswer(line string) (a Answer, ok bool) {
	if strings.HasPrefix(line, "{") {
		return a, json.Unmarshal([]byte(line), &a) == nil && a.Pod != ""
	}
	for _, field := range strings.Fields(line) {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "pod":
			a.Pod = value
		case "node":
			a.Node = value
		case "address":
			a.Address = value
		case "client":
			a.Client = value
		case "protocol":
			a.Protocol = value
		}
	}
	return a, a.Pod != ""
}

// JSONLine is the answer as JSON on one line, newline included.
func (a Answer) JSONLine() []byte {
	b, err := json.Marshal(a)
	if err != nil { // strings and maps of strings always marshal
		panic(err)
	}
	return append(b, '\n')
}

// encode renders the answer in the form of the options.
func (s *Server) encode(a Answer) []byte {
	if s.opts.JSON {
		return a.JSONLine()
	}
	return a.Text()
}
