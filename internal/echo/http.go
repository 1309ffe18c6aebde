package echo

import (
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// handler is the HTTP side:
//
//	/livez, /healthz   200 as long as the process runs
//	/readyz            200 once --slow-start is over, 503 before, after
//	                   /control/unready and when stopping
//	/control/ready, /control/unready (POST)
//	                   turn readiness by hand
//	/control/exit (POST, ?code=1)
//	                   end the process at once, as a crash would
//	anything else      an [Answer]; ?delay=100ms waits longer, ?status=418
//	                   answers that status, ?format=json answers JSON
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	live := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") }
	mux.HandleFunc("/livez", live)
	mux.HandleFunc("/healthz", live)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("POST /control/ready", func(http.ResponseWriter, *http.Request) {
		if !s.draining.Load() {
			s.readyAt.Store(0)
			s.unready.Store(false)
		}
	})
	mux.HandleFunc("POST /control/unready", func(http.ResponseWriter, *http.Request) { s.unready.Store(true) })
	mux.HandleFunc("POST /control/exit", func(_ http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.URL.Query().Get("code"))
		if err != nil {
			code = 1
		}
		os.Exit(code)
	})
	mux.HandleFunc("/", s.echoHTTP)
	return mux
}

func (s *Server) echoHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	extra, _ := time.ParseDuration(query.Get("delay"))
	body, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if s.begin(r.Context(), extra) {
		http.Error(w, "failing on purpose (--failure-rate)", http.StatusInternalServerError)
		return
	}
	address := ""
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		address = a.String()
	}
	a := s.answer("http", address, r.RemoteAddr)
	a.Method, a.Host, a.Path, a.Headers, a.Body = r.Method, r.Host, r.URL.RequestURI(), r.Header, string(body)

	status := http.StatusOK
	if n, err := strconv.Atoi(query.Get("status")); err == nil && n >= 200 && n <= 599 {
		status = n
	}
	out, kind := a.Text(), "text/plain; charset=utf-8"
	if s.opts.JSON || query.Get("format") == "json" || strings.Contains(r.Header.Get("Accept"), "application/json") {
		out, kind = a.JSONLine(), "application/json"
	}
	if s.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	w.WriteHeader(status)
	w.Write(out)
	if s.opts.LogRequests {
		s.log.Info("request", "protocol", "http", "client", r.RemoteAddr, "method", r.Method, "path", a.Path, "status", status)
	}
}
