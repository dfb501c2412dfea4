package ondemand

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
)

// A record file is a header of 128 bytes and the bitmap, span 0 in the lowest
// bit of the first byte. Little-endian:
//
//	  0   8  magic "LACUNAR2"
//	  8   8  spans
//	 16   8  bytes in a span
//	 24   8  inode number of the blob file
//	 32   8  its time of birth, seconds since 1970, signed
//	 40   4  and nanoseconds
//	 44   4  its generation
//	 48   4  which of these there are: bit 0 birth, bit 1 generation
//	 52   4  zero
//	 56   8  device number of the blob's file system
//	 64  36  boot ID as the kernel prints it
//	100   4  1 while the running record is in doubt, else zero
//	104  24  zero
//
// The running record, .spans, is of the same blob if its first 100 bytes are the
// same, the durable one, .durable, if its first 56 are. The durable record has
// the SHA-256 of all before it at its end.
const (
	recordMagic  = "LACUNAR2"
	recordHeader = 128
	blobHeader   = 56 // what both records must agree in
	doubtAt      = 100
	bootIDSize   = 36

	runningName = ".spans"
	durableName = ".durable"
	newName     = ".durable.new"
)

// header is what a record's header says besides the doubt.
type header struct {
	spans, spanSize int64
	blob            identity
	boot            string
}

func (h header) encode() []byte {
	b := make([]byte, 0, recordHeader)
	b = append(b, recordMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.spans))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.spanSize))
	b = binary.LittleEndian.AppendUint64(b, h.blob.inode)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.blob.birth))
	b = binary.LittleEndian.AppendUint32(b, h.blob.birthNsec)
	b = binary.LittleEndian.AppendUint32(b, h.blob.generation)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.blob.known))
	b = binary.LittleEndian.AppendUint64(b, h.blob.device)
	b = append(b, h.boot...)
	return b[:recordHeader]
}

// encodeDurable is a durable record's file.
func encodeDurable(head, bitmap []byte) []byte {
	b := append(bytes.Clone(head), bitmap...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// durableBits returns a durable record's bitmap, nil where it is torn or of
// another blob.
func (h header) durableBits(b []byte) []byte {
	end := recordHeader + int(h.spans+7)/8
	if len(b) != end+sha256.Size || sha256.Sum256(b[:end]) != [sha256.Size]byte(b[end:]) {
		return nil
	}
	if !bytes.Equal(b[:blobHeader], h.encode()[:blobHeader]) {
		return nil
	}
	return h.cut(b[recordHeader:end])
}

// runningBits returns a running record's bitmap, nil where it is torn, in doubt,
// of another blob or of another boot.
func (h header) runningBits(b []byte) []byte {
	end := recordHeader + int(h.spans+7)/8
	if len(b) != end || !bytes.Equal(b[:recordHeader], h.encode()) {
		return nil
	}
	return h.cut(b[recordHeader:])
}

// cut clears the bits past the last span.
func (h header) cut(bitmap []byte) []byte {
	if extra := uint(len(bitmap)*8) - uint(h.spans); extra > 0 {
		bitmap[len(bitmap)-1] &= 0xff >> extra
	}
	return bitmap
}
