// Package routing computes where a repository is while rehash_moves moves it. It is the reference reader in Go for
// docs/how-to/routing.md. It needs only the standard library; following.go needs a database/sql driver for PostgreSQL,
// such as lib/pq.
package routing

import (
	"crypto/md5"
	"encoding/binary"
	"hash/crc32"
	"math/bits"
	"path"
	"regexp"
	"strings"
)

// Cursor is a row of headrace.rehash_cursors.
type Cursor struct {
	Partition uint32  `json:"partition"`
	Upto      *string `json:"upto"`
	Finished  bool    `json:"finished"`
}

const partitions = 16

var deleted = regexp.MustCompile(`^(?:DELETED-[0-9]+\.[0-9]+-)+`)

// NormalForm returns the form of a name that is hashed and ordered. Pass the name as it is in the database.
func NormalForm(name string) string {
	name = name[len(deleted.FindString(name)):]
	clean := path.Clean("/" + strings.TrimSuffix(name, ".git"))[1:]
	host, rest, found := strings.Cut(clean, "/")
	if !found {
		return clean
	}
	host = strings.ToLower(host)
	if host == "github.com" {
		rest = strings.ToLower(rest)
	}
	return host + "/" + rest
}

// Partition returns the number of the cursor that a normal form belongs to.
func Partition(key string) uint32 {
	return crc32.ChecksumIEEE([]byte(key)) % partitions
}

// Passed reports whether the cursors have passed a normal form: then its rendezvous home comes first.
func Passed(key string, cursors []Cursor) bool {
	for _, cursor := range cursors {
		if cursor.Partition == Partition(key) {
			return cursor.Finished || (cursor.Upto != nil && key <= *cursor.Upto) // strings are compared by bytes
		}
	}
	return false
}

// MD5Home returns the old home of a normal form.
func MD5Home(key string, nodes []string) string {
	sum := md5.Sum([]byte(key))
	return nodes[binary.BigEndian.Uint64(sum[:8])%uint64(len(nodes))]
}

// RendezvousHome returns the new home of a normal form.
func RendezvousHome(key string, nodes []string) string {
	best, highest := 0, uint64(0)
	for i, node := range nodes {
		x := xxh64(key) ^ xxh64(node)
		x ^= x >> 12
		x ^= x << 25
		x ^= x >> 27
		x *= 2685821657736338717
		if i == 0 || x > highest {
			best, highest = i, x
		}
	}
	return nodes[best]
}

// Homes returns the nodes to ask for a repository, in order: the second only if the first does not have it.
func Homes(name string, nodes []string, pins map[string]string, cursors []Cursor) []string {
	key := NormalForm(name)
	for pinned, node := range pins {
		if NormalForm(pinned) == key {
			return []string{node}
		}
	}
	first, second := MD5Home(key, nodes), RendezvousHome(key, nodes)
	if Passed(key, cursors) {
		first, second = second, first
	}
	if first == second {
		return []string{first}
	}
	return []string{first, second}
}

const (
	prime1 uint64 = 11400714785074694791
	prime2 uint64 = 14029467366897019727
	prime3 uint64 = 1609587929392839161
	prime4 uint64 = 9650029242287828579
	prime5 uint64 = 2870177450012600261
)

func round(acc, lane uint64) uint64 {
	return bits.RotateLeft64(acc+lane*prime2, 31) * prime1
}

// xxh64 computes XXH64 with seed 0.
func xxh64(text string) uint64 {
	input := []byte(text)
	rest := input
	var hash uint64
	if len(input) >= 32 {
		seed := uint64(0)
		acc := [4]uint64{seed + prime1 + prime2, seed + prime2, seed, seed - prime1}
		for ; len(rest) >= 32; rest = rest[32:] {
			for i := range acc {
				acc[i] = round(acc[i], binary.LittleEndian.Uint64(rest[8*i:]))
			}
		}
		hash = bits.RotateLeft64(acc[0], 1) + bits.RotateLeft64(acc[1], 7) +
			bits.RotateLeft64(acc[2], 12) + bits.RotateLeft64(acc[3], 18)
		for _, each := range acc {
			hash = (hash^round(0, each))*prime1 + prime4
		}
	} else {
		hash = prime5
	}
	hash += uint64(len(input))
	for ; len(rest) >= 8; rest = rest[8:] {
		hash = bits.RotateLeft64(hash^round(0, binary.LittleEndian.Uint64(rest)), 27)*prime1 + prime4
	}
	if len(rest) >= 4 {
		hash = bits.RotateLeft64(hash^uint64(binary.LittleEndian.Uint32(rest))*prime1, 23)*prime2 + prime3
		rest = rest[4:]
	}
	for _, each := range rest {
		hash = bits.RotateLeft64(hash^uint64(each)*prime5, 11) * prime1
	}
	hash = (hash ^ hash>>33) * prime2
	hash = (hash ^ hash>>29) * prime3
	return hash ^ hash>>32
}
