// Package ipam decides which Service has which load-balancer address.
//
// In go pools (SetPools) and what Services ask for (Adopt, Set, Remove); out
// come the addresses each Service holds and, for those that lack some, why
// (Get, TakeChanged). An address has one holder, or several that share it by
// key. Whoever cannot be served waits, and is served by the very call that
// makes it possible, first come first served. What a Service has given up goes
// to others only when Confirm says that the world knows.
//
// It is pure: it knows no API type, starts no goroutine and reads no clock.
// The work of a call depends on what changes, not on the size of pools or the
// number of Services; only SetPools looks at everything.
package ipam
