package testenv

import (
	"encoding/binary"
	"hash/crc32"
)

// Chunk types of SCTP (RFC 9260, section 3.2).
const (
	SCTPInit    = 1
	SCTPInitAck = 2
)

// SCTPPacket returns an SCTP packet (RFC 9260) with one INIT or INIT ACK chunk,
// for raw sockets: not every kernel has SCTP sockets, but all translate it.
func SCTPPacket(sport, dport uint16, tag uint32, chunk byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0) // checksum
	b = append(b, chunk, 0, 0, 20)
	for _, v := range []uint32{4711, 1 << 16, 1<<16 | 1, 1} { // tag, window, streams, first TSN
		b = binary.BigEndian.AppendUint32(b, v)
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}
