// Package content makes random files, and digests trees of them.
package content

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

// Files maps the paths of files, relative to their root, to descriptions of their content.
type Files map[string]string

// Add adds or replaces a file. data of a directory or a link is ignored.
func (f Files) Add(path string, mode fs.FileMode, data []byte) {
	f[path] = fmt.Sprintf("%v", mode)
	if mode.IsRegular() {
		f[path] += fmt.Sprintf(" %d %x", len(data), sha256.Sum256(data))
	}
}

// Digest covers the names, modes and contents of all files.
func (f Files) Digest() string {
	var paths []string
	for path := range f {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	h := sha256.New()
	for _, path := range paths {
		fmt.Fprintf(h, "%q %s\n", path, f[path])
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// Digest returns the digest of all files below a directory.
func Digest(dir string) (string, error) {
	files := make(Files)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var data []byte
		if info.Mode().IsRegular() {
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		files.Add(rel, info.Mode(), data)
		return nil
	})
	return files.Digest(), err
}

// Random returns an endless stream of bytes that depends on the source.
func Random(r *rand.Rand) *rand.ChaCha8 {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], r.Uint64())
	return rand.NewChaCha8(seed)
}

// Change makes, changes and removes up to six of eight files in a directory.
func Change(r *rand.Rand, dir string) error {
	for range 1 + r.IntN(6) {
		path := filepath.Join(dir, fmt.Sprintf("file-%d", r.IntN(8)))
		if r.IntN(5) == 0 {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
			continue
		}
		data := make([]byte, r.IntN(1<<18))
		_, _ = Random(r).Read(data) // never fails
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
