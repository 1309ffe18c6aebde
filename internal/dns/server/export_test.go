package server

import (
	"context"

	"fairway.dev/fairway/internal/dns/wire"
)

// AnswerForTest is what a datagram (udp) or a message of a connection is
// answered with, however long that takes; nil for nothing.
func (s *Server) AnswerForTest(msg []byte, udp bool) []byte {
	s.ctx = context.Background()
	var sn seen
	q := &wire.Query{}
	reply, target, todo := s.look(q, msg, nil, udp, &sn)
	switch todo {
	case drop:
		return nil
	case done:
		return reply
	}
	return s.wait(q, todo, target, udp, &sn)
}
