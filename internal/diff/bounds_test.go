package diff

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestPathsAreBounded: a layer whose paths need too much memory is left to the walking differ.
func TestPathsAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("it makes many files")
	}
	lower, upper := t.TempDir(), t.TempDir()
	deep := filepath.Join(upper, strings.Repeat("/"+strings.Repeat("d", 250), 14))
	require.NoError(t, os.MkdirAll(deep, 0o755))
	fd, err := unix.Open(deep, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	const files = maxHeld/(14*251) + 1
	for i := range files {
		require.NoError(t, unix.Mknodat(fd, fmt.Sprint(i), unix.S_IFREG|0o644, 0))
	}
	_, err = List(t.Context(), Volume{Root: lower}, Volume{Root: upper}, nil)
	require.ErrorIs(t, err, errTooMuch)
}

// TestListsAreBounded: the names of a directory count while it is compared.
func TestListsAreBounded(t *testing.T) {
	b := bounds{most: 2}
	const size = maxHeld/2 - entryBytes
	name := strings.Repeat("n", size)
	leave, err := b.enter()
	require.NoError(t, err)
	require.NoError(t, b.list(name))
	leave()
	leave, err = b.enter()
	require.NoError(t, err)
	require.NoError(t, b.list(name))
	require.NoError(t, b.keep(name))
	require.ErrorIs(t, b.keep(""), errTooMuch)
	leave()
	require.NoError(t, b.keep(""))
	_, err = b.enter()
	require.ErrorIs(t, err, errTooMuch)
}
