package config

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// dockerOption maps a storage option of Docker's devicemapper driver to a configuration key.
type dockerOption struct {
	// key is the key with the same meaning, or "".
	key string
	// literal converts Docker's value to TOML. It must not be nil if there is a key.
	literal func(string) string
	// separator joins the values of a list option that is given more than once.
	separator string
	// why completes the sentence "it …" for an option without a key.
	why string
	// needed is true for options that decide where data is stored, and so cannot be ignored.
	needed bool
}

// dockerOptions are all options of the driver in Docker 24, the last release that has it.
func dockerOptions() map[string]dockerOption {
	text := func(v string) string { return literal(v) }
	asIs := func(v string) string { return v }
	percent := func(v string) string {
		if v = strings.TrimSuffix(v, "%"); v == "" {
			return ""
		}
		return literal(v + "%")
	}
	list := func(separator string) func(string) string {
		return func(v string) string {
			return literal(strings.FieldsFunc(v, func(r rune) bool { return strings.ContainsRune(separator, r) }))
		}
	}
	return map[string]dockerOption{
		"dm.directlvm_device":           {key: "pool.direct_lvm.device", literal: text},
		"dm.directlvm_device_force":     {key: "pool.direct_lvm.force", literal: asIs},
		"dm.thinp_percent":              {key: "pool.direct_lvm.thinp_percent", literal: percent},
		"dm.thinp_metapercent":          {key: "pool.direct_lvm.thinp_metapercent", literal: percent},
		"dm.blocksize":                  {key: "pool.block_size", literal: text},
		"dm.min_free_space":             {key: "pool.min_free_space", literal: percent},
		"dm.loopdatasize":               {key: "pool.loop.data_size", literal: text},
		"dm.loopmetadatasize":           {key: "pool.loop.metadata_size", literal: text},
		"dm.fs":                         {key: "filesystem.type", literal: text},
		"dm.basesize":                   {key: "filesystem.base_size", literal: text},
		"dm.mkfsarg":                    {key: "filesystem.mkfs_options", literal: list(" "), separator: " "},
		"dm.mountopt":                   {key: "filesystem.mount_options", literal: list(","), separator: ","},
		"dm.blkdiscard":                 {key: "pool.discard_on_remove", literal: asIs},
		"dm.thinp_autoextend_threshold": {key: "pool.autoextend_threshold", literal: percent},
		"dm.thinp_autoextend_percent":   {key: "pool.autoextend_percent", literal: percent},
		"dm.use_deferred_removal":       {why: "is always on in thinsnap"},
		"dm.use_deferred_deletion":      {why: "is always on in thinsnap"},
		"dm.override_udev_sync_check":   {why: "is not needed: thinsnap works with and without udev"},
		"dm.xfs_nospace_max_retries": {why: "has no counterpart: on a full pool, xfs retries writes of metadata " +
			"until there is space, or until it is unmounted"},
		"dm.libdm_log_level": {why: "is not needed: thinsnap does not use libdevmapper"},
		"dm.thinpooldev":     {key: "pool.existing.device", literal: text},
		"dm.datadev": {why: "has no counterpart: create the pool and name it with dm.thinpooldev, or " +
			"give thinsnap a disk with dm.directlvm_device", needed: true},
		"dm.metadatadev": {why: "has no counterpart: create the pool and name it with dm.thinpooldev, or " +
			"give thinsnap a disk with dm.directlvm_device", needed: true},
	}
}

// FromDocker converts the options of Docker's devicemapper driver in a daemon.json to a valid
// configuration file, which can use the same pool. An option without a counterpart is an error, or
// a comment in the file if it is not needed. No library parses these options: Docker 25 removed the
// driver.
func FromDocker(daemonJSON []byte) (string, error) {
	var from struct {
		Driver  string   `json:"storage-driver"`
		Options []string `json:"storage-opts"`
	}
	if err := json.Unmarshal(daemonJSON, &from); err != nil {
		return "", fmt.Errorf("read Docker's configuration: %w", err)
	}
	if from.Driver != "" && from.Driver != "devicemapper" {
		return "", fmt.Errorf("the storage driver is %q: thinsnap can only convert options of \"devicemapper\"", from.Driver)
	}
	known := dockerOptions()
	given, values := make(map[string]string), make(map[string]string)
	var notes []string
	for _, option := range from.Options {
		name, value, _ := strings.Cut(option, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		value = strings.TrimSpace(value)
		to, is := known[name]
		before, again := given[name]
		switch {
		case !is:
			return "", fmt.Errorf("unknown storage option %q of the devicemapper driver", name)
		case to.needed:
			return "", fmt.Errorf("the storage option %s %s", name, to.why)
		case again && to.separator != "":
			value = before + to.separator + value
		case again && value != before:
			return "", fmt.Errorf("the storage option %s is given as %q and as %q: remove one of them", name, before, value)
		case again:
			continue
		}
		given[name] = value
		if to.key == "" {
			notes = append(notes, fmt.Sprintf("# %s is ignored: it %s.\n", option, to.why))
			continue
		}
		if values[to.key] = to.literal(value); values[to.key] == "" {
			return "", fmt.Errorf("the storage option %s has no value", name)
		}
	}
	text := writeKeys("Converted from the options of the devicemapper driver in Docker's daemon.json.", values, notes)
	if _, err := Parse([]byte(text)); err != nil {
		return "", err
	}
	return text, nil
}

// writeKeys formats a file with the given keys and values, in the order of the reference, below a
// title and notes, which become comments.
func writeKeys(title string, values map[string]string, notes []string) string {
	var b strings.Builder
	comment(&b, title)
	for _, note := range notes {
		b.WriteString(note)
	}
	fmt.Fprintf(&b, "version = %d\n", Version)
	for _, s := range sections() {
		keys := slices.DeleteFunc(slices.Clone(s.keys), func(k key) bool { return values[k.name] == "" })
		if len(keys) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n[%s]\n", s.name)
		for _, k := range keys {
			fmt.Fprintf(&b, "%s = %s\n", leaf(k.name), values[k.name])
		}
	}
	return b.String()
}
