// Package echo is Fairway's test server: a program that answers over HTTP,
// TCP and UDP with who it is (Pod, node, address) and who asked, so that a
// reader or a test sees which endpoint a Service picked and which source
// address arrived there.
//
// In goes an [Options]; out come answers on its ports until its context ends,
// when it leaves without dropping a request (see [Server.Run]). It imports the
// standard library alone: hundreds of copies run at once in tests and demos,
// and the small cmd/fairway-echo binary that they run is this package and
// nothing else. It must not learn of Kubernetes beyond the names of the
// environment variables that a Pod's downward API fills.
package echo
