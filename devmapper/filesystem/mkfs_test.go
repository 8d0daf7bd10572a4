package filesystem_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
)

func TestMkfsOptions(t *testing.T) {
	require.Equal(t, []string{"-i", "4096"}, filesystem.MkfsOptions(filesystem.Ext4, nil))
	require.Equal(t, []string{"-i", "4096", "-I", "512"}, filesystem.MkfsOptions(filesystem.Ext4, []string{"-I", "512"}))
	for _, choice := range [][]string{{"-i", "65536"}, {"-i65536"}, {"-N", "1000"}, {"-T", "largefile"}} {
		require.Equal(t, choice, filesystem.MkfsOptions(filesystem.Ext4, choice))
	}
	require.Empty(t, filesystem.MkfsOptions(filesystem.XFS, nil))
	require.Equal(t, []string{"-i", "size=1024"}, filesystem.MkfsOptions(filesystem.XFS, []string{"-i", "size=1024"}))
}
