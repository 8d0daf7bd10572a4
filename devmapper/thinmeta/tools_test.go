package thinmeta_test

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func tool(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(name)
	dmtest.RequireInstalled(t, err)
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s: %s", name, &stderr)
	return stdout.Bytes()
}

// restore creates metadata of the given size in bytes from thin_dump's XML.
func restore(t testing.TB, dump string, size int64) (path string) {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "dump.xml")
	require.NoError(t, os.WriteFile(source, []byte(dump), 0o600))
	path = filepath.Join(dir, "metadata")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	tool(t, "thin_restore", "-i", source, "-o", path)
	return path
}

// contents are the volumes and mappings of a pool's metadata.
type contents struct {
	devices  []thinmeta.Device
	mappings map[uint32][]thinmeta.Mapping // in order; of every device
}

type xmlMappings struct {
	Singles []struct {
		Virtual uint64 `xml:"origin_block,attr"`
		Data    uint64 `xml:"data_block,attr"`
		Time    uint32 `xml:"time,attr"`
	} `xml:"single_mapping"`
	Ranges []struct {
		Virtual uint64 `xml:"origin_begin,attr"`
		Data    uint64 `xml:"data_begin,attr"`
		Length  uint64 `xml:"length,attr"`
		Time    uint32 `xml:"time,attr"`
	} `xml:"range_mapping"`
}

type xmlPool struct {
	Time             uint32 `xml:"time,attr"`
	TransactionID    uint64 `xml:"transaction,attr"`
	Flags            uint32 `xml:"flags,attr"`
	Version          uint32 `xml:"version,attr"`
	DataBlockSectors uint32 `xml:"data_block_size,attr"`
	Devices          []struct {
		ID              uint32 `xml:"dev_id,attr"`
		MappedBlocks    uint64 `xml:"mapped_blocks,attr"`
		TransactionID   uint64 `xml:"transaction,attr"`
		CreationTime    uint32 `xml:"creation_time,attr"`
		SnapshottedTime uint32 `xml:"snap_time,attr"`
		xmlMappings
	} `xml:"device"`
}

func parse(t testing.TB, dump []byte) xmlPool {
	t.Helper()
	var p xmlPool
	require.NoError(t, xml.Unmarshal(dump, &p))
	return p
}

func (p xmlPool) contents() contents {
	c := contents{mappings: map[uint32][]thinmeta.Mapping{}}
	for _, d := range p.Devices {
		c.devices = append(c.devices, thinmeta.Device{
			ID: d.ID, MappedBlocks: d.MappedBlocks, TransactionID: d.TransactionID,
			CreationTime: d.CreationTime, SnapshottedTime: d.SnapshottedTime,
		})
		mappings := d.all()
		slices.SortFunc(mappings, func(a, b thinmeta.Mapping) int {
			return cmp.Compare(a.Virtual, b.Virtual)
		})
		c.mappings[d.ID] = mappings
	}
	return c
}

func (m xmlMappings) all() []thinmeta.Mapping {
	var all []thinmeta.Mapping
	for _, s := range m.Singles {
		all = append(all, thinmeta.Mapping{Virtual: s.Virtual, Data: s.Data, Time: s.Time})
	}
	for _, r := range m.Ranges {
		for i := range r.Length {
			all = append(all, thinmeta.Mapping{Virtual: r.Virtual + i, Data: r.Data + i, Time: r.Time})
		}
	}
	return all
}

// dump renders contents as input of thin_restore.
func (c contents) dump(time uint32) string {
	blocks := uint64(1)
	for _, all := range c.mappings {
		for _, m := range all {
			blocks = max(blocks, m.Data+1)
		}
	}
	var s strings.Builder
	fmt.Fprintf(&s, `<superblock uuid="" time="%d" transaction="7" version="2" data_block_size="128" nr_data_blocks="%d">`,
		time, blocks)
	for _, d := range c.devices {
		fmt.Fprintf(&s, `<device dev_id="%d" mapped_blocks="%d" transaction="%d" creation_time="%d" snap_time="%d">`,
			d.ID, d.MappedBlocks, d.TransactionID, d.CreationTime, d.SnapshottedTime)
		for _, m := range c.mappings[d.ID] {
			fmt.Fprintf(&s, `<single_mapping origin_block="%d" data_block="%d" time="%d"/>`, m.Virtual, m.Data, m.Time)
		}
		s.WriteString("</device>\n")
	}
	s.WriteString("</superblock>\n")
	return s.String()
}

// read reads all volumes and mappings, up to the first error.
func read(t testing.TB, m *thinmeta.Metadata) (contents, error) {
	t.Helper()
	c := contents{mappings: map[uint32][]thinmeta.Mapping{}}
	for d, err := range m.Devices(t.Context()) {
		if err != nil {
			return c, err
		}
		c.devices = append(c.devices, d)
	}
	for _, d := range c.devices {
		var all []thinmeta.Mapping
		for p, err := range m.Mappings(t.Context(), d.ID) {
			if err != nil {
				return c, err
			}
			all = append(all, p)
		}
		c.mappings[d.ID] = all
	}
	return c, nil
}
