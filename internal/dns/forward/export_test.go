package forward

import (
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
)

// NewAnswerForTest makes an answer of a reply as if an upstream had sent it.
func NewAnswerForTest(q *wire.Query, m *dns.Msg) (*Answer, error) {
	return newAnswer(key{name: string(q.Name), typ: q.Type}, m, time.Now())
}

// LifetimeForTest is for how long an answer holds.
func LifetimeForTest(a *Answer) time.Duration { return a.ttl }
