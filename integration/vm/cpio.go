package vm

import (
	"bytes"
	"fmt"
)

// cpioWriter writes an archive in the "newc" format, which the kernel unpacks at boot
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpioWriter struct {
	buf   bytes.Buffer
	inode int
}

const (
	modeDir     = 0o040755
	modeFile    = 0o100755
	modeSymlink = 0o120777
)

func (w *cpioWriter) dir(name string)             { w.entry(name, modeDir, nil) }
func (w *cpioWriter) file(name string, b []byte)  { w.entry(name, modeFile, b) }
func (w *cpioWriter) symlink(name, target string) { w.entry(name, modeSymlink, []byte(target)) }

func (w *cpioWriter) entry(name string, mode int, data []byte) {
	w.inode++
	fmt.Fprintf(&w.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		w.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	w.buf.WriteString(name + "\x00")
	w.pad()
	w.buf.Write(data)
	w.pad()
}

// pad fills up to a multiple of four bytes, where names and data have to end.
func (w *cpioWriter) pad() {
	for w.buf.Len()%4 != 0 {
		w.buf.WriteByte(0)
	}
}

// bytes ends the archive and returns it.
func (w *cpioWriter) bytes() []byte {
	w.entry("TRAILER!!!", 0, nil)
	return w.buf.Bytes()
}
