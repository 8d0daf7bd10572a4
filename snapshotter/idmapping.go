package snapshotter

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// maxIDRanges is UID_GID_MAP_MAX_EXTENTS of include/linux/user_namespace.h.
const maxIDRanges = 340

// idMapping matches containerd's form, a list of container:host:length.
var idMapping = regexp.MustCompile(`^\d+:\d+:\d+(,\d+:\d+:\d+)*$`)

// checkIDMapping refuses the labels of an id mapping that does not have containerd's form or that the
// kernel refuses.
func checkIDMapping(labels map[string]string) error {
	uids, gids := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if uids == "" && gids == "" {
		return nil
	}
	if !idMapping.MatchString(uids) || !idMapping.MatchString(gids) {
		return fmt.Errorf("user id mapping %q and group id mapping %q must both be of the form container:host:length: %w",
			uids, gids, errdefs.ErrInvalidArgument)
	}
	for _, mapping := range []string{uids, gids} {
		if err := checkIDRanges(mapping); err != nil {
			return fmt.Errorf("id mapping %q: %w: %w", mapping, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// mappedIDs are the ids from first up to, but not including, end.
type mappedIDs struct{ first, end uint64 }

// checkIDRanges applies the rules of map_write in the kernel's kernel/user_namespace.c.
func checkIDRanges(mapping string) error {
	lines := strings.Split(mapping, ",")
	if len(lines) > maxIDRanges {
		return fmt.Errorf("it has %d ranges, and the kernel takes at most %d", len(lines), maxIDRanges)
	}
	var inside, outside []mappedIDs
	for _, line := range lines {
		var numbers [3]uint64
		for i, field := range strings.Split(line, ":") {
			n, err := strconv.ParseUint(field, 10, 32)
			if err != nil {
				return fmt.Errorf("%s is more than 32 bits", field)
			}
			numbers[i] = n
		}
		length := numbers[2]
		if length == 0 {
			return fmt.Errorf("range %s is empty", line)
		}
		for _, first := range numbers[:2] {
			if first+length > math.MaxUint32 {
				return fmt.Errorf("range %s ends after id %d", line, uint32(math.MaxUint32-1))
			}
		}
		inside = append(inside, mappedIDs{numbers[0], numbers[0] + length})
		outside = append(outside, mappedIDs{numbers[1], numbers[1] + length})
	}
	if overlap(inside) || overlap(outside) {
		return fmt.Errorf("ranges overlap")
	}
	return nil
}

func overlap(ranges []mappedIDs) bool {
	slices.SortFunc(ranges, func(a, b mappedIDs) int { return cmp.Compare(a.first, b.first) })
	for i := 1; i < len(ranges); i++ {
		if ranges[i].first < ranges[i-1].end {
			return true
		}
	}
	return false
}
