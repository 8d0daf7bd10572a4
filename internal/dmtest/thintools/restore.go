package thintools

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// Volume is a volume to restore. Its mappings must be in order.
type Volume struct {
	ID, Created, Snapshotted uint32
	Mappings                 []thinmeta.Mapping
}

// Restore creates metadata of the given size in bytes with thin_restore, which needs no kernel, and
// returns the path of its file. The pool has blocks of 64 KiB.
func Restore(t testing.TB, time uint32, bytes int64, volumes ...Volume) string {
	t.Helper()
	program, err := exec.LookPath("thin_restore")
	dmtest.RequireInstalled(t, err)
	blocks := uint64(1)
	for _, v := range volumes {
		for _, m := range v.Mappings {
			blocks = max(blocks, m.Data+1)
		}
	}
	var s strings.Builder
	fmt.Fprintf(&s, `<superblock uuid="" time="%d" transaction="0" version="2" data_block_size="128" nr_data_blocks="%d">`,
		time, blocks)
	for _, v := range volumes {
		fmt.Fprintf(&s, `<device dev_id="%d" mapped_blocks="%d" transaction="0" creation_time="%d" snap_time="%d">`,
			v.ID, len(v.Mappings), v.Created, v.Snapshotted)
		for _, m := range v.Mappings {
			fmt.Fprintf(&s, `<single_mapping origin_block="%d" data_block="%d" time="%d"/>`, m.Virtual, m.Data, m.Time)
		}
		s.WriteString("</device>\n")
	}
	s.WriteString("</superblock>\n")
	source, path := filepath.Join(t.TempDir(), "dump.xml"), filepath.Join(t.TempDir(), "metadata")
	if err := os.WriteFile(source, []byte(s.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, bytes); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, "-i", source, "-o", path).CombinedOutput(); err != nil {
		t.Fatalf("thin_restore: %v: %s", err, out)
	}
	return path
}
