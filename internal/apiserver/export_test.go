package apiserver

// StopStore stops the embedded store behind the server's back.
func (s *Server) StopStore() { s.store.Close() }
