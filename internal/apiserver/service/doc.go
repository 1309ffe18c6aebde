// Package service is Fairway's own registry of Services: what the API server does when somebody creates, changes or
// deletes one.
//
// What goes in: Service objects as clients send them, decoded and with static defaults. What comes out: the same objects,
// completed with IP families, cluster addresses and node ports, validated, and stored; or an error that names field,
// value and rule. It writes Services, IPAddresses and the claims on node ports, in etcd, and no other key. It programs
// no packet path and knows no endpoint but to proxy to one.
//
// # The way of a write
//
//  1. transition.go: what an update leaves unsaid is carried over from the stored object; what no longer makes sense is dropped.
//  2. families.go: ipFamilyPolicy, ipFamilies and clusterIPs are made to agree.
//  3. strategy.go: the object is validated (rules and words are upstream's), before anything is claimed for it.
//  4. ledger.go: addresses and ports that it lacks are claimed (package claim). Each is a key of its own in etcd, so this is safe
//     between any number of servers.
//  5. The object is stored, if nobody changed it meanwhile; otherwise from 1 again, with what is claimed already.
//  6. ledger.go: once the outcome is known, and only then, what the stored object does not hold is released.
//
// What an object holds is computed from the object alone (holdings.go), and what a change claims and releases is the
// difference of two holdings. No transition between types is a case of its own.
//
// # Why nothing is handed out twice, and nothing is lost
//
// A stored Service holds something only while a claim on it exists: the claim is made before the Service is stored and
// released after a write that gives it up. Releasing checks the owner, by UID, so that it may happen late or twice.
// A server killed in between leaves a claim without a Service. repair.go finds and ends those: never sooner than a
// write could still come, since every write gives up after half that time.
package service
