// Package thintools runs thin-provisioning-tools on the metadata of a pool that is not in the
// kernel. Restore creates such metadata. The other functions need root, for a loop device.
package thintools

import (
	"encoding/xml"
	"os/exec"
	"strconv"
	"testing"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// Dump returns the pool's block of each mapped block of each volume, from thin_dump of a file of
// metadata.
func Dump(t testing.TB, file string) map[thin.ID]map[uint64]uint64 {
	t.Helper()
	var d struct {
		Devices []struct {
			ID      thin.ID `xml:"dev_id,attr"`
			Singles []struct {
				Virtual uint64 `xml:"origin_block,attr"`
				Data    uint64 `xml:"data_block,attr"`
			} `xml:"single_mapping"`
			Ranges []struct {
				Virtual uint64 `xml:"origin_begin,attr"`
				Data    uint64 `xml:"data_begin,attr"`
				Length  uint64 `xml:"length,attr"`
			} `xml:"range_mapping"`
		} `xml:"device"`
	}
	run(t, file, &d, "thin_dump")
	all := make(map[thin.ID]map[uint64]uint64)
	for _, device := range d.Devices {
		mapped := make(map[uint64]uint64)
		for _, s := range device.Singles {
			mapped[s.Virtual] = s.Data
		}
		for _, r := range device.Ranges {
			for i := range r.Length {
				mapped[r.Virtual+i] = r.Data + i
			}
		}
		all[device.ID] = mapped
	}
	return all
}

// Delta returns the runs of blocks that differ, from thin_delta.
func Delta(t testing.TB, file string, left, right thin.ID) (runs []thinmeta.Run) {
	t.Helper()
	var d struct {
		Diff struct {
			Runs []struct {
				XMLName xml.Name
				Begin   uint64 `xml:"begin,attr"`
				Length  uint64 `xml:"length,attr"`
			} `xml:",any"`
		} `xml:"diff"`
	}
	run(t, file, &d, "thin_delta", "--thin1", strconv.Itoa(int(left)), "--thin2", strconv.Itoa(int(right)))
	for _, r := range d.Diff.Runs {
		if kind := r.XMLName.Local; kind != "same" {
			run := thinmeta.Run{Virtual: r.Begin, Length: r.Length, Left: kind != "right_only", Right: kind != "left_only"}
			runs = append(runs, run)
		}
	}
	return runs
}

// run runs a program on a file and decodes its output. The program gets a loop device, because it
// opens the file with O_DIRECT, which a tmpfs supports only since Linux 6.6.
func run(t testing.TB, file string, output any, program string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(program)
	dmtest.RequireInstalled(t, err)
	loop, err := blockdev.LoopAttach(file, blockdev.LoopOptions{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := exec.Command(path, append(args, loop.Path)...).Output()
	if closeErr := loop.Close(); err != nil || closeErr != nil {
		t.Fatalf("%s of %s: %v, %v", program, file, err, closeErr)
	}
	if err := xml.Unmarshal(text, output); err != nil {
		t.Fatalf("%s of %s: %v", program, file, err)
	}
}
