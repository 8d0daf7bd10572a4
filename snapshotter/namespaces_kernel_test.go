package snapshotter_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// mountNamespace is a copy of the mount namespace that does not receive later mounts of the original,
// like that of a systemd service with PrivateMounts. nil is the original.
type mountNamespace struct{ file *os.File }

func newMountNamespace(t *testing.T) *mountNamespace {
	t.Helper()
	var n mountNamespace
	require.NoError(t, onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		n.file, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	}))
	t.Cleanup(func() { require.NoError(t, n.file.Close()) })
	return &n
}

func (n *mountNamespace) in(f func() error) error {
	if n == nil {
		return f()
	}
	return onThread(func() error {
		// A thread that shares its working directory cannot enter a mount namespace.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		return f()
	})
}

// onThread calls f on a thread of its own.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}

// Mounts' results can be mounted in any order, in this and in another mount namespace, beside other
// mounts, read-only and writable. A mount shows the content, or fails.
func TestMountsInAnyOrder(t *testing.T) {
	firsts := map[string]func(t *testing.T, h *host, key, dir string){
		"nothing":   func(*testing.T, *host, string, string) {},
		"read-only": func(t *testing.T, h *host, key, dir string) { mountOf(t, h, key, dir, "ro") },
		"writable":  func(t *testing.T, h *host, key, dir string) { mountOf(t, h, key, dir, "rw") },
		"bind": func(t *testing.T, h *host, key, dir string) {
			mountOf(t, h, key, dir, "rw")
			bound := t.TempDir()
			mountOf(t, h, key, bound, "rw")
			require.NoError(t, unix.Unmount(dir, 0))
		},
	}
	for _, fs := range dmtest.Filesystems() {
		t.Run(fs, func(t *testing.T) {
			ctx, h := newTestHost(t, filesystems[fs])
			for first, mountFirst := range firsts {
				for _, asked := range []string{"before", "after"} {
					for _, second := range []string{"rw", "ro"} {
						for _, space := range []string{"the same", "older", "newer"} {
							t.Run(fmt.Sprintf("%s,asked %s it,then %s in %s namespace", first, asked, second, space), func(t *testing.T) {
								key := t.Name()
								mounts, err := h.Prepare(ctx, key, "")
								require.NoError(t, err)
								t.Cleanup(func() { require.NoError(t, h.Remove(ctx, key)) })
								mounted(t, mounts, func(dir string) { write(t, dir, "file", key) })
								var ns *mountNamespace
								if space == "older" {
									ns = newMountNamespace(t)
								}
								if asked == "before" {
									mounts, err = h.Mounts(ctx, key)
									require.NoError(t, err)
								}
								mountFirst(t, h, key, t.TempDir())
								if asked == "after" {
									mounts, err = h.Mounts(ctx, key)
									require.NoError(t, err)
								}
								if space == "newer" {
									ns = newMountNamespace(t)
								}
								var content string
								err = ns.in(func() (err error) {
									content, err = contentOf(t.TempDir(), with(mounts, second))
									return err
								})
								if err == nil {
									require.Equal(t, key, content)
								}
								writable := first != "read-only"
								switch {
								case mounts[0].Type == "bind" && space == "older":
									require.ErrorIs(t, err, unix.ENOENT, "its path does not exist")
								case mounts[0].Type == "bind", first == "nothing", writable == (second == "rw"):
									require.NoError(t, err)
								default:
									require.ErrorIs(t, err, unix.EBUSY)
								}
							})
						}
					}
				}
			}
			require.NoError(t, h.Cleanup(ctx))
		})
	}
}

func contentOf(dir string, mounts []mount.Mount) (string, error) {
	if err := mount.All(mounts, dir); err != nil {
		return "", err
	}
	content, err := os.ReadFile(filepath.Join(dir, "file"))
	if os.IsNotExist(err) {
		content, err = []byte("something else"), nil
	}
	if err := mount.UnmountAll(dir, 0); err != nil {
		return "", err
	}
	return string(content), err
}

// with returns mounts that are writable ("rw") or read-only ("ro").
func with(mounts []mount.Mount, mode string) []mount.Mount {
	m := mounts[0]
	m.Options = append([]string{mode}, m.Options...)
	for i := 1; i < len(m.Options); i++ {
		if m.Options[i] == "rw" {
			m.Options[i] = mode
		}
	}
	return []mount.Mount{m}
}

// mountOf mounts the result of Mounts at dir until the end of the test.
func mountOf(t *testing.T, h *host, key, dir, mode string) {
	t.Helper()
	mounts, err := h.Mounts(t.Context(), key)
	require.NoError(t, err)
	require.NoError(t, mount.All(with(mounts, mode), dir))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); !strings.Contains(fmt.Sprint(err), unix.EINVAL.Error()) {
			require.NoError(t, err)
		}
	})
}
