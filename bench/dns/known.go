package main

import "regexp"

// differs makes an exception of two patterns, each for the whole text.
func differs(kind, what, why string) exception {
	return exception{regexp.MustCompile("^(" + kind + ")$"), regexp.MustCompile("^(" + what + ")$"), why}
}

// What is said of many.
const (
	deniedHere = "rcode NXDOMAIN, not NOERROR"
	deniedThen = "rcode NOERROR, not NXDOMAIN"
	lettersIn  = `\[[A-Z]+ letters(, [A-Z]+ letters)*\]`
	moreHere   = `(answer|additional): only here \[[^\]]+\], only there \[[^\]]*\]`
	noneThere  = `authority: only here \[\], only there \[SOA\]`
	noneHere   = `authority: only here \[SOA\], only there \[\]`
)

// known are the differences that are meant to be. docs/dns.md tells of those
// that anybody might notice.
var known = []exception{
	// In every answer.
	differs(".*", "flag ra true, not false",
		"recursion is on offer, so every answer says so (RFC 1035 section 4.1.1); CoreDNS says it of upstreams' answers only"),
	differs(".*", "weights",
		"SRV records have the weight 100 each, CoreDNS's 100 divided by their number; only their ratio means something (RFC 2782)"),
	differs(".* (SRV|CNAME|A|AAAA|DS|NS|PTR|TXT|HTTPS|MX|SOA)", "(answer|additional|authority): only here "+lettersIn+", only there "+lettersIn,
		"the asker's letters are told back in targets and the zone's name too, where CoreDNS writes small ones; names are the same in any letters (RFC 4343)"),
	differs(".*", "flag tc true, not false",
		"at most 1232 bytes over UDP, whatever the asker takes, so that nothing is fragmented; CoreDNS sends up to what the asker says. (ANY and an alias's SRV have records here alone)"),
	differs(".* SRV|headless.*: port (A|AAAA)", "flag tc false, not true",
		"an answer is cut only if a record of its answer section does not fit (RFC 2181 section 9); CoreDNS says so too where the additional ones do not, and of its addresses of ports"),

	differs("zone NS", "(answer|authority|additional): .*",
		"the zone's name server is ns.dns.cluster.local, as its SOA says; with CoreDNS kube-dns.kube-system.svc.cluster.local, and none if the question has capitals"),

	// Types.
	differs(".* ANY", moreHere+"|"+noneThere, "ANY has the name's records; CoreDNS says that there are none"),
	differs(".* SOA", deniedHere, "a name that does not exist is denied for SOA as for every type; CoreDNS says that it exists"),
	differs("ExternalName( inside)? .*", deniedHere,
		"the code is that of the end of the chain of CNAMEs (RFC 6604 section 3); CoreDNS says that all is well"),
	differs("ExternalName( inside)? .*", `answer: only here \[(CNAME, )?[A-Z]+\], only there \[\]|`+noneThere+`|authority: only here \[SOA\], only there \[(SOA)?\]`,
		"an alias is followed for every type (RFC 1034 section 3.6.2), and where that ends with nothing, whose SOA says so; CoreDNS follows it for A and AAAA only"),
	differs("(dns-version|above the name server|name server|zone|top label|namespace|namespace of Pods) .*", deniedThen,
		"a name that exists, be it for what is below it, is not denied for other types (RFC 8020); CoreDNS denies it for TXT, and those of its own names for all but theirs"),

	// Names of ports and endpoints.
	differs(".*: protocol alone .*", deniedThen, "_tcp alone leads to its ports' names, so it exists (RFC 8020); CoreDNS denies it"),
	differs(".*: port without underscores .*", deniedHere, "http.tcp.web is nobody's name by the specification; CoreDNS takes it for _http._tcp.web"),
	differs(".*: port without a name .*", deniedHere, "a port without a name has no name (section 2.3.2); to CoreDNS _._tcp is every port"),
	differs(".*: port (A|AAAA|CNAME)", `answer: only here \[\], only there .*|flag a record twice false, not true|`+noneHere,
		"a port's name has SRV records alone (section 2.3.2); with CoreDNS also the Service's addresses"),
	differs("headless.*: port .*", deniedHere, "a slice's port without a number makes no SRV record and so no name; with CoreDNS the name exists"),
	differs(".*, a dash at its end.*|Pod's name .*", deniedThen, "an address in a name may be spelt in any way; CoreDNS knows of endpoints fd00-1--0 and not fd00-1--, of Pods the contrary"),
	differs("(address as a |finished )?Pod's name SRV", `answer: only here \[\], only there \[SRV\]|`+noneHere, "a Pod's name has addresses alone (section 2.6); with CoreDNS also an SRV record with port 0"),
	differs("no address as a Pod's name .*", deniedHere, "nothing is below a Pod's name; CoreDNS answers for names below it that look like a port's"),
	differs("Service with a slice of names.*|ExternalName inside, of a Service with odd things .*", ".*", "a slice of names (FQDN) gives no records; CoreDNS answers with CNAMEs beside addresses, which RFC 1034 section 3.6.2 forbids"),
	differs(".* with unready endpoints to publish.*|reverse of an (unready endpoint to publish( of several Services)?|endpoint whose Service is gone) PTR",
		deniedThen+"|"+moreHere+"|"+noneThere+"|flag tc .*",
		"publishNotReadyAddresses of the Service counts, whatever its slices say, as the API's documentation has it; for CoreDNS the slices' word does"),

	// Addresses' names.
	differs("reverse of .*", deniedThen,
		"an address that has a name exists for every type; CoreDNS asks the upstream about all but PTR, and whoever caches its denial (RFC 8020) loses the name"),
	differs("reverse of .* SOA", `authority: only here \[SOA\], only there \[SOA\]`,
		"who denies records of an address's name is the cluster's own name server; CoreDNS names ns.dns.in-addr.arpa, which nobody has"),
	differs("below a reverse name PTR", deniedHere, "nothing is below an address's name; CoreDNS takes it for the address"),
	differs("half a reverse name .*", deniedHere, "who has in-addr.arpa itself is asked about it; CoreDNS answers for it"),
	differs("reverse of an endpoint whose Service is gone PTR", deniedHere+`|answer: only here .*, only there \[PTR\]`,
		"without its Service an endpoint has no name; with CoreDNS it keeps it as long as its slice is there"),
	differs("reverse of an (unready )?endpoint (to publish )?of several Services PTR", `answer: only here \[\], only there \[PTR\]`,
		"the names in headless Services, or if there are none the others, first the Pod's own; with CoreDNS all, in any order"),
	differs("finished Pod's name .*", deniedHere, "a Pod that has ended has no name, for its address may be another's by now; with CoreDNS it has one until it is deleted"),
	differs("top label .*", deniedHere, "with --pods=disabled there is nothing below pod, so it does not exist; with CoreDNS it does"),

	// Aliases and other names.
	differs("(.*everse.*|outside) .*", "rcode REFUSED, not .*", "who asks for no recursion (RD) about others' names is refused; CoreDNS asks for it all the same"),
	differs("ExternalName with an address .*", deniedThen, "a Service exists whose externalName is an address; it only has no records"),
	differs("(.*everse.*|outside|ExternalName( inside)?) .*", `(answer|authority): only here .* ttl.*`, "answers from outside are cached here and their time runs; in this comparison CoreDNS's are not"),
	differs("outside .*", "(answer|authority): only here .*", "the same, where letters differ besides, which are the asker's"),
}
