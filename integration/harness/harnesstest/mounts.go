package harnesstest

import (
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Mounts lists the mount points below a directory, the last mounted first.
func Mounts(t testing.TB, dir string) []string {
	t.Helper()
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		skip, _ = mountinfo.PrefixFilter(dir)(info)
		return skip || info.Mountpoint == dir, false
	})
	require.NoError(t, err)
	var found []string
	for _, info := range infos {
		found = append([]string{info.Mountpoint}, found...)
	}
	return found
}

// UnmountBelow unmounts all mounts below a directory. Only a failed test may leave some.
func UnmountBelow(t testing.TB, dir string) {
	t.Helper()
	for _, mountpoint := range Mounts(t, dir) {
		if !t.Failed() {
			t.Errorf("%s is still mounted", mountpoint)
		}
		require.NoError(t, unix.Unmount(mountpoint, unix.MNT_DETACH))
	}
}
