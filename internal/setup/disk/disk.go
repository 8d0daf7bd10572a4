// Package disk plans the entries for a pool's disk in thinsnap's configuration and in its systemd
// unit.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/coreos/go-systemd/v22/unit"
	"github.com/pelletier/go-toml/v2"

	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

const (
	// ByID is the directory of disk names that are stable across reboots.
	ByID = "/dev/disk/by-id"
	// DropIn is the drop-in for thinsnap's unit (docs/pools.md).
	DropIn = "/etc/systemd/system/thinsnap.service.d/disk.conf"

	mode = "direct-lvm"
)

// plain is a name that TOML, systemd and LVM accept without escapes.
var plain = regexp.MustCompile(`^/[A-Za-z0-9/_.:+=@-]+$`)

// Stable returns a name of the disk that is stable across reboots, from a directory such as [ByID],
// or device and false if there is none. Names below /dev/disk and /dev/mapper are stable. It fails
// with errdefs.ErrNotFound for a missing disk, and with errdefs.ErrInvalidArgument for a name that
// needs escapes.
func Stable(device, byID string) (name string, stable bool, err error) {
	target, err := filepath.EvalSymlinks(device)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, fmt.Errorf("%s: there is no such disk: see `lsblk`: %w", device, errdefs.ErrNotFound)
	}
	if err != nil {
		return "", false, err
	}
	if !plain.MatchString(device) {
		return "", false, fmt.Errorf("%q: name the disk by an absolute path of letters, digits and /_.:+=@-, such as one in "+
			"%s: %w", device, byID, errdefs.ErrInvalidArgument)
	}
	for _, dir := range []string{"/dev/disk/", "/dev/mapper/", byID + "/"} {
		if strings.HasPrefix(device, dir) {
			return device, true, nil
		}
	}
	entries, err := os.ReadDir(byID)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	var names []string
	for _, e := range entries {
		path := filepath.Join(byID, e.Name())
		if same, err := filepath.EvalSymlinks(path); err == nil && same == target && plain.MatchString(path) {
			names = append(names, path)
		}
	}
	if len(names) == 0 {
		return device, false, nil
	}
	slices.SortFunc(names, func(a, b string) int {
		if isNumber(a) != isNumber(b) {
			return strings.Compare(fmt.Sprint(isNumber(a)), fmt.Sprint(isNumber(b)))
		}
		return strings.Compare(a, b)
	})
	return names[0], true, nil
}

// isNumber reports whether a name has a prefix that a number usually follows, not the disk's model.
func isNumber(path string) bool {
	name := filepath.Base(path)
	for _, prefix := range []string{"wwn-", "nvme-eui.", "nvme-nvme.", "scsi-0", "scsi-1", "scsi-3"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

type keys struct {
	Pool struct {
		Mode      string `toml:"mode"`
		DirectLVM struct {
			Device string `toml:"device"`
		} `toml:"direct_lvm"`
		Existing struct {
			Device string `toml:"device"`
		} `toml:"existing"`
	} `toml:"pool"`
}

// Configure plans the line of thinsnap's configuration that names the disk. It fails with
// errdefs.ErrFailedPrecondition if the file describes another pool, with errdefs.ErrInvalidArgument
// for a file that is not TOML, and with errdefs.ErrNotImplemented for a file form that it cannot
// change.
func Configure(path, device string) (journal.File, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text := fmt.Appendf(nil, "version = 1\n\n[pool.direct_lvm]\ndevice = %q\n", device)
		return journal.File{Path: path, After: text}, nil
	}
	if err != nil {
		return journal.File{}, err
	}
	text = append([]byte{}, text...)
	f := journal.File{Path: path, Before: text, After: text}
	var has keys
	if err := toml.Unmarshal(text, &has); err != nil {
		return f, fmt.Errorf("%s: %w: correct it: %w", path, err, errdefs.ErrInvalidArgument)
	}
	pool := has.Pool
	switch {
	case sameDisk(pool.DirectLVM.Device, device) && (pool.Mode == "" || pool.Mode == mode):
		return f, nil
	case pool.DirectLVM.Device != "":
		return f, alreadySet(path, "pool.direct_lvm.device", pool.DirectLVM.Device)
	case pool.Existing.Device != "":
		return f, alreadySet(path, "pool.existing.device", pool.Existing.Device)
	case pool.Mode != "" && pool.Mode != mode:
		return f, alreadySet(path, "pool.mode", pool.Mode)
	}
	f.After = []byte(withDevice(string(text), fmt.Sprintf("device = %q\n", device)))
	return f, verify(f, device)
}

// sameDisk reports whether two names are those of one disk. The configured name stays, because
// thinsnap refuses another one for a pool that was made with it.
func sameDisk(one, two string) bool {
	if one == two {
		return true
	}
	first, err := filepath.EvalSymlinks(one)
	second, secondErr := filepath.EvalSymlinks(two)
	return one != "" && err == nil && secondErr == nil && first == second
}

func alreadySet(path, key, value string) error {
	return fmt.Errorf("%s has %s = %q already: remove that line if its pool is not in use, or leave out --disk: %w",
		path, key, value, errdefs.ErrFailedPrecondition)
}

var (
	tableLine  = regexp.MustCompile(`^\s*\[`)
	lvmLine    = regexp.MustCompile(`^\s*\[\s*pool\s*\.\s*direct_lvm\s*\]`)
	deviceLine = regexp.MustCompile(`^\s*(#?)\s*device\s*=\s*(""|'')\s*(#.*)?$`)
)

// withDevice returns the text with a line in the table pool.direct_lvm. The line replaces an empty
// device, or follows a commented-out one, or comes first. A missing table is added.
func withDevice(text, line string) string {
	lines := strings.SplitAfter(text, "\n")
	at, replaces, inTable := -1, 0, false
	for i, l := range lines {
		if tableLine.MatchString(l) {
			inTable = lvmLine.MatchString(l)
			if inTable {
				at = i + 1
			}
			continue
		}
		m := deviceLine.FindStringSubmatch(strings.TrimRight(l, "\r\n"))
		if !inTable || m == nil {
			continue
		}
		if m[1] == "" {
			at, replaces = i, 1
			break
		}
		at = i + 1
	}
	if at < 0 {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		return text + "\n[pool.direct_lvm]\n" + line
	}
	return strings.Join(slices.Concat(lines[:at], []string{line}, lines[at+replaces:]), "")
}

// verify fails if the changed file does not have the planned content.
func verify(f journal.File, device string) error {
	var before, after map[string]any
	err := errors.Join(toml.Unmarshal(f.Before, &before), toml.Unmarshal(f.After, &after))
	if before == nil {
		before = make(map[string]any)
	}
	table := before
	for _, name := range []string{"pool", "direct_lvm"} {
		inner, isTable := table[name].(map[string]any)
		if !isTable {
			inner = make(map[string]any)
			table[name] = inner
		}
		table = inner
	}
	table["device"] = device
	if err == nil && reflect.DeepEqual(before, after) {
		return nil
	}
	return fmt.Errorf("%s: this version of thinsnap cannot change a file of this form: set "+
		"pool.direct_lvm.device = %q by hand: %w", f.Path, device, errdefs.ErrNotImplemented)
}

// UnitOf returns the systemd unit of a device, which becomes active when udev has created the node.
func UnitOf(device string) string { return unit.UnitNamePathEscape(device) + ".device" }

// DropInText returns the drop-in of thinsnap's unit for a disk. systemd allows the disk only if its
// node exists when the unit starts.
func DropInText(device string) string {
	return fmt.Sprintf("[Unit]\nWants=%[2]s\nAfter=lvm2-monitor.service %[2]s\n\n[Service]\nDeviceAllow=%[1]s rw\n",
		device, UnitOf(device))
}

// Unit plans the drop-in that lets thinsnap's unit use the disk. A file at path that is not in the
// record, or was edited, stays if it allows the disk. If it does not, Unit fails with
// errdefs.ErrFailedPrecondition.
func Unit(path, device string, record *journal.Record, command string) (journal.File, error) {
	f := journal.File{Path: path, After: fmt.Appendf(nil, "# Written by `%[1]s`. `%[1]s --undo` removes it, unless it was "+
		"edited.\n%s", command, DropInText(device))}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, err
	}
	f.Before = append([]byte{}, text...)
	if record.Created(path) && !record.Edited(path, text) {
		return f, nil
	}
	if slices.Contains(strings.Split(string(text), "\n"), "DeviceAllow="+device+" rw") {
		f.After = f.Before
		return f, nil
	}
	return f, fmt.Errorf("%s exists, and does not allow the disk: add the line `DeviceAllow=%s rw` to its section "+
		"[Service]: %w", path, device, errdefs.ErrFailedPrecondition)
}
