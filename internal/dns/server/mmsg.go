package server

import (
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Many datagrams in one system call, recvmmsg(2) and sendmmsg(2): half the
// cost of a small answer is entering the kernel.

const (
	batchLen = 32
	// maxQuery is the largest question read over UDP; longer ones are cut, and
	// so not well-formed.
	maxQuery = 2048
)

// mmsghdr is struct mmsghdr of <sys/socket.h>.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// batch is room for datagrams and for their answers. Its headers point into
// itself; it stays where it is.
type batch struct {
	in, out       [batchLen]mmsghdr
	inVec, outVec [batchLen]unix.Iovec
	peers         [batchLen]unix.RawSockaddrInet6 // large enough for IPv4 too
	control       [batchLen][64]byte
	queries       [batchLen][maxQuery]byte
	replies       [batchLen][]byte
	sending       int
}

// batchPool holds batches between uses: only a socket that has something to
// read needs one.
type batchPool struct{ sync.Pool }

func newBatchPool(replySize int) *batchPool {
	p := &batchPool{}
	p.New = func() any {
		b := &batch{}
		room := make([]byte, batchLen*replySize)
		for i := range batchLen {
			b.inVec[i].Base = &b.queries[i][0]
			b.inVec[i].SetLen(maxQuery)
			b.in[i].hdr.Iov = &b.inVec[i]
			b.in[i].hdr.SetIovlen(1)
			b.in[i].hdr.Name = (*byte)(unsafe.Pointer(&b.peers[i]))
			b.out[i].hdr.Iov = &b.outVec[i]
			b.out[i].hdr.SetIovlen(1)
			b.replies[i] = room[i*replySize : i*replySize : (i+1)*replySize]
		}
		return b
	}
	return p
}

func (p *batchPool) get() *batch  { return p.Get().(*batch) }
func (p *batchPool) put(b *batch) { p.Put(b) }

// receive reads what is there, without waiting.
func (b *batch) receive(fd uintptr, withControl bool) (int, error) {
	for i := range b.in {
		b.in[i].hdr.Namelen = unix.SizeofSockaddrInet6
		if withControl {
			b.in[i].hdr.Control = &b.control[i][0]
			b.in[i].hdr.SetControllen(len(b.control[i]))
		} else {
			b.in[i].hdr.Control = nil
			b.in[i].hdr.SetControllen(0)
		}
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), batchLen, unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		b.sending = 0
		return int(n), nil
	}
}

func (b *batch) query(i int) []byte { return b.queries[i][:b.in[i].n] }

// peer is the sender's address.
func (b *batch) peer(i int) netip.Addr { return sockaddr(&b.peers[i]) }

func sockaddr(sa *unix.RawSockaddrInet6) netip.Addr {
	if sa.Family == unix.AF_INET {
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr)
	}
	return netip.AddrFrom16(sa.Addr).Unmap()
}

// reply queues an answer to the i'th datagram.
func (b *batch) reply(i int, msg []byte) {
	o := b.sending
	b.sending++
	b.outVec[o].Base = &msg[0]
	b.outVec[o].SetLen(len(msg))
	h := &b.out[o].hdr
	h.Name, h.Namelen = b.in[i].hdr.Name, b.in[i].hdr.Namelen
	h.Control = nil
	h.SetControllen(0)
	if n := int(b.in[i].hdr.Controllen); b.in[i].hdr.Control != nil && n > 0 {
		sendFrom(b.control[i][:n])
		h.Control = b.in[i].hdr.Control
		h.SetControllen(n)
	}
}

// send sends the queued answers. One that cannot be sent is left out; the rest go.
func (b *batch) send(raw syscall.RawConn) error {
	sent := 0
	for sent < b.sending {
		var errno syscall.Errno
		err := raw.Write(func(fd uintptr) bool {
			n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out[sent])), uintptr(b.sending-sent), unix.MSG_DONTWAIT, 0, 0)
			errno = e
			if e == 0 {
				sent += int(n)
			}
			return e != unix.EAGAIN
		})
		if err != nil {
			return err
		}
		if errno != 0 && errno != unix.EINTR {
			sent++ // no route, or a firewall says no: this one's loss
		}
	}
	return nil
}

// peerInfo is what it takes to answer a datagram later.
type peerInfo struct {
	addr    unix.RawSockaddrInet6
	addrLen uint32
	control [64]byte
	ctlLen  int
}

func (b *batch) peerInfo(i int) *peerInfo {
	p := &peerInfo{addr: b.peers[i], addrLen: b.in[i].hdr.Namelen}
	if b.in[i].hdr.Control != nil {
		p.ctlLen = int(b.in[i].hdr.Controllen)
		p.control = b.control[i]
		sendFrom(p.control[:p.ctlLen])
	}
	return p
}

// send sends one answer.
func (p *peerInfo) send(raw syscall.RawConn, msg []byte) error {
	vec := unix.Iovec{Base: &msg[0]}
	vec.SetLen(len(msg))
	h := &unix.Msghdr{Name: (*byte)(unsafe.Pointer(&p.addr)), Namelen: p.addrLen, Iov: &vec}
	h.SetIovlen(1)
	if p.ctlLen > 0 {
		h.Control = &p.control[0]
		h.SetControllen(p.ctlLen)
	}
	var errno syscall.Errno
	err := raw.Write(func(fd uintptr) bool {
		_, _, errno = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT)
		return errno != unix.EAGAIN
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// sendFrom turns the packet information a datagram came with (ip(7),
// ipv6(7)) into that of its answer: from the address it was sent to, by
// whatever way the routes say.
func sendFrom(control []byte) {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(control) {
			return
		}
		data := control[unix.CmsgLen(0):n]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			(*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Ifindex = 0
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			p := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			if !netip.AddrFrom16(p.Addr).IsLinkLocalUnicast() {
				p.Ifindex = 0
			}
		}
		control = control[min(len(control), unix.CmsgSpace(n-unix.CmsgLen(0))):]
	}
}
