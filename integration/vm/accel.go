package vm

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	probeLimit = 15 * time.Second
	probeWord  = "thinsnap-guest-boots"
)

// chooseAccel returns "kvm" or "tcg". On some hosts no guest boots with KVM although /dev/kvm exists, so it tries
// one. The cache keeps the answer while the host's kernel and QEMU stay the same.
func chooseAccel(ctx context.Context, cache string, k kernel, initrd string) (string, error) {
	if !accessible("/dev/kvm") {
		return "tcg", nil
	}
	key, err := hostKey(ctx)
	if err != nil {
		return "", err
	}
	answer := filepath.Join(cache, "accel-"+key)
	if b, err := os.ReadFile(answer); err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	accel := "tcg"
	if probe(ctx, "kvm", k, initrd) {
		accel = "kvm"
	} else if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := writeFile(answer, []byte(accel+"\n")); err != nil {
		return "", fmt.Errorf("store the accelerator in the cache: %w", err)
	}
	return accel, nil
}

func accessible(path string) bool { return unix.Access(path, unix.R_OK|unix.W_OK) == nil }

// hostKey names the host's kernel and QEMU.
func hostKey(ctx context.Context) (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("read the version of the host's kernel: %w", err)
	}
	version, err := exec.CommandContext(ctx, qemuProgram, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("read QEMU's version: %w", err)
	}
	sum := sha256.Sum256([]byte(unix.ByteSliceToString(uts.Release[:]) + unix.ByteSliceToString(uts.Version[:]) +
		string(version)))
	return fmt.Sprintf("%x", sum[:6]), nil
}

// probe reports whether a guest boots within the limit.
func probe(ctx context.Context, accel string, k kernel, initrd string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	args := append(baseArgs(accel, k, initrd, "thinsnap.probe="+probeWord), "-m", "512")
	out, _ := exec.CommandContext(ctx, qemuProgram, args...).Output() // the printed word decides, not the error
	// The kernel may print its command line: only the word on a line of its own counts.
	for _, line := range strings.Split(string(out), "\n") {
		if strings.TrimSpace(line) == probeWord {
			return true
		}
	}
	return false
}
