package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/admin"
)

const maxCandidates = 5

// resolveHelp describes the names that resolve accepts.
const resolveHelp = "KEY is the key of a snapshot or a unique part of it, the name, id or pod of a container, the name of an image\n" +
	"(its last layer), or the mapped device of a volume."

// resolve returns the key of the snapshot that a name means. It tries the key, the mapped device
// (by name or path), and the container: by name or id, by pod, by the start of its id. Then it tries
// the image, whose last layer it returns, and a part of the key, also as `ls` shortens it. It fails with
// errdefs.ErrNotFound if nothing matches, and with errdefs.ErrInvalidArgument if several snapshots
// match.
func resolve(ctx context.Context, client *admin.Client, name string) (string, error) {
	if name == "" {
		return "", usagef("the name of a snapshot is empty")
	}
	snapshots, err := client.Snapshots(ctx, false)
	if err != nil {
		return "", err
	}
	var owners []admin.Owner
	for _, by := range []func() []string{
		func() []string { return withKey(snapshots, func(key string) bool { return key == name }) },
		func() []string { return withDevice(snapshots, name) },
		func() []string {
			answer, err := client.Owners(ctx)
			if err == nil {
				owners = answer.Owners
			}
			return ofContainer(owners, func(c admin.Container) bool { return c.ID == name || c.Name == name })
		},
		func() []string {
			return ofContainer(owners, func(c admin.Container) bool {
				return !c.Sandbox && c.Pod != "" && (c.Pod == name || c.PodNamespace+"/"+c.Pod == name)
			})
		},
		func() []string {
			return ofContainer(owners, func(c admin.Container) bool {
				return len(name) >= minID && strings.HasPrefix(c.ID, name)
			})
		},
		func() []string { return ofImage(snapshots, owners, name) },
		func() []string { return withKey(snapshots, partOf(name)) },
	} {
		switch found := by(); {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return "", errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s could be %s: give one of these keys",
				printable(name), candidates(found, owners)))
		}
	}
	return "", fmt.Errorf("no snapshot, container or image is called %s; `thinsnap ls` lists the snapshots: %w",
		printable(name), errdefs.ErrNotFound)
}

// candidates lists snapshots, with their owners if these are known.
func candidates(keys []string, owners []admin.Owner) string {
	var texts []string
	for _, key := range keys[:min(len(keys), maxCandidates)] {
		text := printable(key)
		if i := slices.IndexFunc(owners, func(o admin.Owner) bool { return o.Key == key }); i >= 0 {
			text += " (" + ownerText(&owners[i]) + ")"
		}
		texts = append(texts, text)
	}
	if more := len(keys) - len(texts); more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	return strings.Join(texts, ", ")
}

func withKey(snapshots []admin.Snapshot, fits func(string) bool) (keys []string) {
	for _, s := range snapshots {
		if fits(s.Key) {
			keys = append(keys, s.Key)
		}
	}
	return keys
}

// volumeNode matches the name or the path of a volume's mapped device.
var volumeNode = regexp.MustCompile(`^(?:/dev/mapper/)?[^/]+-snap-([0-9]+)$`)

// withDevice finds the snapshot that owns a volume by the volume's mapped device. A View of the
// snapshot has the same device and is not returned.
func withDevice(snapshots []admin.Snapshot, name string) (keys []string) {
	match := volumeNode.FindStringSubmatch(name)
	for _, s := range snapshots {
		if match != nil && s.Kind != admin.KindView && deviceID(s.DeviceID) == match[1] {
			keys = append(keys, s.Key)
		}
	}
	return keys
}

// minID is the minimum length of a part of a container's id.
const minID = 4

// ofContainer finds the root file systems of containers.
func ofContainer(owners []admin.Owner, fits func(admin.Container) bool) (keys []string) {
	for _, o := range owners {
		if o.Container != nil && fits(*o.Container) {
			keys = append(keys, o.Key)
		}
	}
	return keys
}

// ofImage finds the last layers of an image: one for each namespace and platform.
func ofImage(snapshots []admin.Snapshot, owners []admin.Owner, name string) []string {
	layers, parents := make(map[string]bool), make(map[string]bool)
	for _, o := range owners {
		if slices.Contains(o.Images, name) {
			layers[o.Key] = true
		}
	}
	for _, s := range snapshots {
		parents[s.Parent] = parents[s.Parent] || layers[s.Key]
	}
	return withKey(snapshots, func(key string) bool { return layers[key] && !parents[key] })
}

// partOf returns a function that reports whether a key contains the parts of a name, in order. "…"
// separates the parts.
func partOf(name string) func(string) bool {
	return func(key string) bool {
		for part := range strings.SplitSeq(name, "…") {
			_, rest, found := strings.Cut(key, part)
			if !found {
				return false
			}
			key = rest
		}
		return true
	}
}
