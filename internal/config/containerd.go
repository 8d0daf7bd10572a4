package config

import (
	"fmt"
	"strings"

	"github.com/thinsnap/thinsnap/internal/setup"
)

// fromContainerd is the conversion of one configuration.
type fromContainerd struct {
	values map[string]string // literals, by key
	notes  []string
}

// FromContainerd converts the section of containerd's built-in devmapper snapshotter to a valid
// configuration file for the same pool. A comment names each key without a counterpart or with
// another meaning.
//
// A configuration has no images and containers: internal/adopt takes them over.
func FromContainerd(from setup.Config) (string, error) {
	d := from.Devmapper
	to := fromContainerd{values: map[string]string{
		"pool.mode":              literal(ModeExisting),
		"pool.existing.device":   literal("/dev/mapper/" + d.PoolName),
		"pool.discard_on_remove": literal(d.DiscardBlocks),
	}}
	to.source(from)
	to.note("root_path", d.RootPath, "has no counterpart: thinsnap's store is in root. \"thinsnap adopt devmapper\" "+
		"reads the databases there, and takes over the images and containers.")
	to.note("pool_name", d.PoolName, "is the pool of both. thinsnap does not use a pool with skip_block_zeroing: the "+
		"adoption has it zero blocks. For a pool of LVM, VG/LV as pool.existing.device lets thinsnap activate it.")
	to.fileSystem(d.FileSystemType, d.FsOptions)
	if err := to.size(d.BaseImageSize); err != nil {
		return "", err
	}
	to.note("async_remove", d.AsyncRemove, "has no counterpart: thinsnap always deletes removed snapshots in the "+
		"background.")
	if !d.DiscardBlocks {
		to.note("discard_blocks", d.DiscardBlocks, "is the default of the built-in. The default of thinsnap is true.")
	}
	for _, key := range d.Unknown {
		to.add(fmt.Sprintf("%q is ignored: the built-in has no such key.", key))
	}
	title := "Converted from the section of containerd's built-in devmapper snapshotter in " + files(from.Files) + "."
	text := writeKeys(title, to.values, to.notes)
	if _, err := Parse([]byte(text)); err != nil {
		return "", err
	}
	return text, nil
}

// files names the first file, and counts its imports.
func files(names []string) string {
	text := literal(names[0])
	if imports := len(names) - 1; imports > 0 {
		text += fmt.Sprintf(" and its imports (%d)", imports)
	}
	return text
}

func (to *fromContainerd) add(text string) {
	var b strings.Builder
	comment(&b, text)
	to.notes = append(to.notes, b.String())
}

// note adds a comment about a key. Values are quoted, so that none can end the comment.
func (to *fromContainerd) note(key string, value any, text string) {
	to.add(fmt.Sprintf("%s = %s %s", key, literal(value), text))
}

// source adds comments about containerd's rules for the file.
func (to *fromContainerd) source(from setup.Config) {
	if from.Only != "" {
		to.add(fmt.Sprintf("The file and its imports are read by the rules of containerd %s. With other releases, the "+
			"built-in does not start.", from.Only))
	}
	if from.Devmapper.Disabled {
		to.add("The built-in is in disabled_plugins: containerd does not start it.")
	}
}

// fileSystem converts fs_type and fs_options. mke2fs uses only the last -E, so fs_options replace
// the -E of thinsnap, as they replace that of the built-in (containerd's
// plugins/snapshots/devmapper/snapshotter.go: mkfs).
func (to *fromContainerd) fileSystem(typ, options string) {
	if typ != Ext4 && typ != XFS {
		to.note("fs_type", typ, "has no counterpart: thinsnap makes ext4.")
		typ = Ext4
	}
	to.values["filesystem.type"] = literal(typ)
	switch {
	case options == "":
	case typ == XFS:
		to.note("fs_options", options, "is ignored: the built-in does not use it for xfs.")
	default:
		to.values["filesystem.mkfs_options"] = literal([]string{"-E", options})
		to.note("fs_options", options, "is -E of mkfs.ext4 and replaces the extended options of thinsnap, among them "+
			"nodiscard. Other options of thinsnap stay: no blocks for root, and an inode for each 4KiB.")
	}
}

// size converts base_image_size to a size that thinsnap can use.
func (to *fromContainerd) size(text string) error {
	var size Size
	if err := size.UnmarshalText([]byte(text)); err != nil {
		return fmt.Errorf("base_image_size: %w", err)
	}
	least := minExt4Size
	if to.values["filesystem.type"] == literal(XFS) {
		least = minXFSSize
	}
	usable := max(least, (size+diskBlock-1)/diskBlock*diskBlock)
	to.values["filesystem.base_size"] = literal(usable)
	if usable != size {
		to.note("base_image_size", text, fmt.Sprintf("is not possible: thinsnap has %v.", usable))
	}
	return nil
}
