// Package pngtext keeps a line of text in a PNG: what the picture shows, for those who cannot look.
package pngtext

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// keyword of the chunk (PNG specification, 11.3.4.3).
const keyword = "Description\x00"

const (
	signature = "\x89PNG\r\n\x1a\n"
	// header is the length of the signature and of the first chunk, IHDR: length, type, 13 bytes, CRC.
	header = len(signature) + 4 + 4 + 13 + 4
)

var errNoPNG = errors.New("not a PNG")

// Set returns the picture with the text, which has to be Latin-1.
func Set(png []byte, text string) ([]byte, error) {
	if len(png) < header || !bytes.HasPrefix(png, []byte(signature)) {
		return nil, errNoPNG
	}
	chunk := []byte("tEXt" + keyword + text)
	out := bytes.Clone(png[:header])
	out = binary.BigEndian.AppendUint32(out, uint32(len(chunk)-4))
	out = append(out, chunk...)
	out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(chunk))
	return append(out, png[header:]...), nil
}

// Get returns the text that Set has put there, "" for none.
func Get(png []byte) (string, error) {
	rest, ok := bytes.CutPrefix(png, []byte(signature))
	if !ok {
		return "", errNoPNG
	}
	for len(rest) >= 12 {
		n := binary.BigEndian.Uint32(rest)
		if uint64(n)+12 > uint64(len(rest)) {
			break
		}
		data := rest[8 : 8+n]
		if text, ok := bytes.CutPrefix(data, []byte(keyword)); ok && string(rest[4:8]) == "tEXt" {
			return string(text), nil
		}
		rest = rest[12+n:]
	}
	return "", nil
}
