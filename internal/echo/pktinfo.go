package echo

import (
	"syscall"
	"unsafe"
)

// pktinfo4 builds the control message that sets an IPv4 datagram's source.
func pktinfo4(source [4]byte) []byte {
	b := make([]byte, syscall.CmsgSpace(syscall.SizeofInet4Pktinfo))
	h := (*syscall.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = syscall.IPPROTO_IP, syscall.IP_PKTINFO
	h.SetLen(syscall.CmsgLen(syscall.SizeofInet4Pktinfo))
	(*syscall.Inet4Pktinfo)(unsafe.Pointer(&b[syscall.CmsgLen(0)])).Spec_dst = source
	return b
}

// pktinfo6 builds the control message that sets an IPv6 datagram's source.
func pktinfo6(source [16]byte) []byte {
	b := make([]byte, syscall.CmsgSpace(syscall.SizeofInet6Pktinfo))
	h := (*syscall.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = syscall.IPPROTO_IPV6, syscall.IPV6_PKTINFO
	h.SetLen(syscall.CmsgLen(syscall.SizeofInet6Pktinfo))
	(*syscall.Inet6Pktinfo)(unsafe.Pointer(&b[syscall.CmsgLen(0)])).Addr = source
	return b
}
