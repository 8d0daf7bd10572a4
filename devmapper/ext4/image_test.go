package ext4_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func tool(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	dmtest.RequireInstalled(t, err)
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s %s: %s", name, args, &stderr)
	return stdout.String()
}

// image makes an ext4 of the given size in bytes with the files of source, "" for none.
func image(t testing.TB, size int64, source string, options ...string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	args := append([]string{"-q", "-F", "-t", "ext4"}, options...)
	if source != "" {
		args = append(args, "-d", source)
	}
	tool(t, "", "mke2fs", append(args, path)...)
	return path
}

func open(t testing.TB, path string) (*ext4.FileSystem, error) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	info, err := f.Stat()
	require.NoError(t, err)
	return ext4.Open(f, uint64(info.Size()))
}

// source creates a tree with each kind of inode, and with fragmented files.
func source(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for i := range 300 {
		name := at(fmt.Sprintf("usr/share/doc-%d/a-file-with-a-name-%d", i%7, i))
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, bytes.Repeat([]byte{byte(i)}, i*37), 0o644))
	}
	require.NoError(t, os.WriteFile(at("small"), []byte("inline"), 0o600))
	require.NoError(t, os.Link(at("small"), at("usr/small")))
	require.NoError(t, os.Symlink("short", at("fast")))
	require.NoError(t, os.Symlink(strings.Repeat("long", 40), at("slow")))
	require.NoError(t, os.WriteFile(at("large"), bytes.Repeat([]byte("large"), 1<<20), 0o600))
	for name, pieces := range map[string]int64{"pieces": 30, "fragments": 1500} { // trees of depth 1 and 2
		f, err := os.Create(at(name))
		require.NoError(t, err)
		for i := range pieces {
			_, err := f.WriteAt([]byte("piece"), i*8192)
			require.NoError(t, err)
		}
		require.NoError(t, f.Close())
	}
	return dir
}

// features are options of mke2fs for images that this package reads.
func features() map[string][]string {
	return map[string][]string{
		"default":          nil,
		"1k":               {"-b", "1024"},
		"2k":               {"-b", "2048"},
		"^64bit":           {"-O", "^64bit"},
		"^metadata_csum":   {"-O", "^metadata_csum"},
		"uninit_bg":        {"-O", "^metadata_csum,uninit_bg"},
		"^flex_bg":         {"-b", "1024", "-O", "^flex_bg"},
		"^flex_bg,^csum":   {"-b", "1024", "-O", "^flex_bg,^metadata_csum,^64bit"},
		"meta_bg":          {"-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode"},
		"meta_bg,^64bit":   {"-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode,^64bit"},
		"many groups":      {"-b", "1024", "-g", "1024", "-N", "8192"},
		"sparse_super2":    {"-b", "1024", "-g", "2048", "-O", "sparse_super2,^resize_inode"},
		"^sparse_super":    {"-b", "1024", "-O", "^sparse_super,^resize_inode"},
		"inline_data":      {"-O", "inline_data"},
		"inline, 1k inode": {"-I", "1024", "-O", "inline_data"},
		"large_dir":        {"-O", "large_dir"},
		"quota":            {"-O", "quota,project", "-E", "quotatype=usrquota:grpquota:prjquota"},
		"orphan_file":      {"-O", "orphan_file"},
		"128":              {"-I", "128", "-O", "^metadata_csum"},
		"512":              {"-I", "512"},
		"^has_journal":     {"-O", "^has_journal"},
		"^resize_inode":    {"-O", "^resize_inode"},
		"csum_seed":        {"-O", "metadata_csum_seed"},
		"flex of 4":        {"-b", "1024", "-g", "1024", "-G", "4"},
	}
}
