// Package nft makes the kernel hold a table of frontends, as one nftables table
// of maps and sets that it writes over netlink.
//
// In go frontends, diffs of them and facts about the node (package state); out
// comes a table in a network namespace which sends connections to backends.
// Whatever the number of frontends there is a fixed number of base chains and
// rules, and a small chain for every class of frontends that behave alike;
// everything else is a set element, so that a change costs what changed.
// docs/data-plane.md describes the table.
//
// The package touches its own table and nothing else: no packet or connection
// marks, no sysctls, no other table. It knows nothing of Kubernetes.
package nft
