package filesystem

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// mountedDevice returns a device with a file system that has a file, and its mount point.
func mountedDevice(t *testing.T) (dev, dir string) {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, MinExt4))
	loop, err := blockdev.LoopAttach(file, blockdev.LoopOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, loop.Close()) })
	require.NoError(t, Make(t.Context(), loop.Path, Ext4, nil))
	dir = t.TempDir()
	require.NoError(t, unix.Mount(loop.Path, dir, Ext4, 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	return loop.Path, dir
}

// inCopy copies the present mount namespace, in which later mounts do not appear. The returned
// function calls f in the copy.
func inCopy(t *testing.T, f func()) (run func()) {
	t.Helper()
	copied, begin, done := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		copied <- err
		<-begin
		if err == nil {
			f()
		}
	}()
	require.NoError(t, <-copied)
	return func() {
		close(begin)
		<-done
	}
}

// TestMountInCopiesOfTheNamespace: a copy of the mount namespace from any time during Mount shows
// the file system at the path that Mount returns, or nothing.
func TestMountInCopiesOfTheNamespace(t *testing.T) {
	dev, _ := mountedDevice(t)
	dir := filepath.Join(t.TempDir(), "1")
	stage, share := filepath.Join(dir, stageDir), filepath.Join(dir, shareDir)
	var seen []string
	look := func() {
		_, err := os.Lstat(filepath.Join(share, rootDir))
		if err == nil {
			_, err = os.Lstat(filepath.Join(share, rootDir, "file"))
			require.NoError(t, err, "it must be the file system")
			seen = append(seen, "the file system")
			return
		}
		seen = append(seen, "nothing")
	}
	copies := []func(){inCopy(t, look)}
	require.NoError(t, os.MkdirAll(stage, 0o700))
	require.NoError(t, os.MkdirAll(share, 0o700))
	copies = append(copies, inCopy(t, look))
	require.NoError(t, mountStage(stage, mount.Mount{Type: Ext4, Source: dev}))
	copies = append(copies, inCopy(t, look))
	require.NoError(t, attach(stage, share))
	copies = append(copies, inCopy(t, look))
	require.NoError(t, unmountAll(stage))
	for _, run := range append(copies, inCopy(t, look)) {
		run()
	}
	require.Equal(t, []string{"nothing", "nothing", "nothing", "the file system", "the file system"}, seen)
	path, err := Mount(dev, Ext4, dir, nil)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(share, rootDir), path, "it is already mounted")
	require.FileExists(t, filepath.Join(path, "file"), "the unmount of the stage did not propagate")
	require.NoError(t, Unmount(dir))
	require.NoDirExists(t, dir)
}

// TestMountPropagates: in a pod with mountPropagation: Bidirectional, mounts and unmounts reach the
// node's mount namespace.
func TestMountPropagates(t *testing.T) {
	dev, _ := mountedDevice(t)
	data := t.TempDir()
	require.NoError(t, unix.Mount(data, data, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(data, 0)) })
	require.NoError(t, unix.Mount("", data, "", unix.MS_SHARED, ""))
	dir := filepath.Join(data, "1")
	steps, done := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		done <- unix.Unshare(unix.CLONE_NEWNS)
		for step := range steps {
			done <- step()
		}
	}()
	defer close(steps)
	require.NoError(t, <-done)
	var path string
	steps <- func() (err error) {
		path, err = Mount(dev, Ext4, dir, nil)
		return err
	}
	require.NoError(t, <-done)
	require.FileExists(t, filepath.Join(path, "file"))
	steps <- func() error { return Unmount(dir) }
	require.NoError(t, <-done)
	require.NoDirExists(t, dir)
}

// TestMountAfterACrash: Mount and Unmount remove the remains of a crash at any step, and the mount
// of an older version. Symbolic links in the container's file system are not followed.
func TestMountAfterACrash(t *testing.T) {
	dev, at := mountedDevice(t)
	for _, name := range []string{stageDir, shareDir} {
		require.NoError(t, os.Symlink("/", filepath.Join(at, name)))
	}
	mustMkdir := func(t *testing.T, paths ...string) {
		t.Helper()
		for _, path := range paths {
			require.NoError(t, os.MkdirAll(path, 0o700))
		}
	}
	for name, leave := range map[string]func(t *testing.T, dir string){
		"an empty directory": func(t *testing.T, dir string) { mustMkdir(t, dir) },
		"all directories": func(t *testing.T, dir string) {
			mustMkdir(t, filepath.Join(dir, stageDir), filepath.Join(dir, shareDir))
		},
		"the stage": func(t *testing.T, dir string) {
			mustMkdir(t, filepath.Join(dir, stageDir), filepath.Join(dir, shareDir))
			require.NoError(t, mountStage(filepath.Join(dir, stageDir), mount.Mount{Type: Ext4, Source: dev}))
		},
		"the stage beside the mount": func(t *testing.T, dir string) {
			_, err := Mount(dev, Ext4, dir, nil)
			require.NoError(t, err)
			mustMkdir(t, filepath.Join(dir, stageDir))
			require.NoError(t, mountStage(filepath.Join(dir, stageDir), mount.Mount{Type: Ext4, Source: dev}))
		},
		"a mount of an older version": func(t *testing.T, dir string) {
			mustMkdir(t, dir)
			require.NoError(t, unix.Mount(dev, dir, Ext4, 0, ""))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "1")
			leave(t, dir)
			require.NoError(t, Unmount(dir))
			require.NoDirExists(t, dir)
			require.NoError(t, Unmount(dir))

			leave(t, dir)
			path, err := Mount(dev, Ext4, dir, nil)
			require.NoError(t, err)
			require.FileExists(t, filepath.Join(path, "file"))
			require.NoError(t, Unmount(dir))
			require.NoDirExists(t, dir)
		})
	}
}

// TestMountThatFails: a failed mount leaves nothing.
func TestMountThatFails(t *testing.T) {
	dev, _ := mountedDevice(t)
	dir := filepath.Join(t.TempDir(), "1")
	_, err := Mount(dev, Ext4, dir, []string{"ro"})
	require.ErrorIs(t, err, unix.EBUSY)
	require.NoDirExists(t, dir)
	_, err = Mount(dev, Ext4, dir, []string{"no-such-option"})
	require.ErrorIs(t, err, unix.EINVAL)
	require.NoDirExists(t, dir)
}
