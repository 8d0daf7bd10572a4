package pool

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func testSpec() LVMSpec {
	return LVMSpec{
		ID: "ID", Name: "thin-snap", BlockBytes: 64 << 10, Device: "/dev/xdf", PVUUID: "PV",
		DataPercent: 95, MetadataPercent: 1, Threshold: 80, ExtendPercent: 20,
	}
}

func lines(steps []Step) string {
	var b strings.Builder
	for _, s := range steps {
		b.WriteString(s.String() + "\n")
	}
	return b.String()
}

// TestLVMSteps: the remaining steps are taken after any crash, and none twice.
func TestLVMSteps(t *testing.T) {
	spec := testSpec()
	found := survey{bytes: 20 << 30}
	all := `pvcreate --yes --uuid PV --norestorefile /dev/xdf
vgcreate --yes --addtag THINSNAP-ID thin-snap /dev/xdf
lvcreate --yes --wipesignatures y --zero y --name pool --extents 95%VG thin-snap
lvcreate --yes --wipesignatures y --zero y --name poolmeta --extents 1%VG thin-snap
lvconvert --yes --zero y --poolmetadataspare n --chunksize 64K --thinpool thin-snap/pool --poolmetadata thin-snap/poolmeta
printf 'activation {\n\tthin_pool_autoextend_threshold=80\n\tthin_pool_autoextend_percent=20\n}\n' > /etc/lvm/profile/THINSNAP-ID.profile
lvchange --addtag THINSNAP-ID --metadataprofile THINSNAP-ID thin-snap/pool
`
	require.Equal(t, all, lines(spec.steps(found)))
	found.signatures = []string{"ext4"}
	require.Equal(t, "wipefs --all --quiet /dev/xdf\n"+all, lines(spec.steps(found)))

	rest := strings.SplitAfter(all, "\n")
	left := func(done int) {
		t.Helper()
		require.NoError(t, spec.refuse(found, false))
		require.Equal(t, strings.Join(rest[done:], ""), lines(spec.steps(found)))
	}
	pv := pvReport{Path: "/dev/xdf", UUID: "PV"}
	found.disk = &pv
	left(1)
	pv.VG, pv.Copies = "[unknown]", 1
	require.NoError(t, spec.refuse(found, false))
	require.Equal(t, "wipefs --all --quiet /dev/xdf\n"+all, lines(spec.steps(found)))
	pv.VG, pv.VGTags = "thin-snap", "mine,THINSNAP-ID"
	found.groups = []pvReport{pv}
	left(2)
	found.volumes = []lvReport{{Name: "pool", Layout: "linear"}}
	left(3)
	found.volumes = append(found.volumes, lvReport{Name: "poolmeta", Layout: "linear"})
	left(4)
	found.volumes = []lvReport{{Name: "pool", Layout: "thin,pool"}}
	left(5)
	found.volumes = []lvReport{{Name: "pool", Layout: "thin,pool", Tags: "THINSNAP-ID", Profile: "THINSNAP-ID"}}
	left(8)

	require.Contains(t, lines(spec.steps(survey{bytes: 4 << 40})), "--name poolmeta --size 15G")
}

func TestLVMRefusals(t *testing.T) {
	spec := testSpec()
	free := survey{bytes: 20 << 30}
	require.NoError(t, spec.refuse(free, false))
	for text, change := range map[string]func(*survey){
		"is not empty (dos, ext4)":                       func(f *survey) { f.signatures = []string{"dos", "ext4"} },
		"pool.direct_lvm.force = true":                   func(f *survey) { f.signatures = []string{"dos"} },
		"is in the volume group other":                   func(f *survey) { f.disk = &pvReport{UUID: "x", VG: "other", VGTags: "THINSNAP-ID"} },
		"was added to the volume group other":            func(f *survey) { f.disk = &pvReport{UUID: "PV", VG: "other"} },
		"was added to the volume group [unknown]":        func(f *survey) { f.disk = &pvReport{UUID: "PV", VG: "[unknown]"} },
		"this pool's disk is now /dev/y":                 func(f *survey) { f.moved = "/dev/y" },
		"its partition /dev/xdf1 is used":                func(f *survey) { f.part = &pvReport{Path: "/dev/xdf1"} },
		"it is mounted: choose another":                  func(f *survey) { f.taken = "it is mounted" },
		"has 1048576 bytes":                              func(f *survey) { f.bytes = 1 << 20 },
		"the volume group thin-snap exists (on /dev/y":   func(f *survey) { f.groups = []pvReport{{Path: "/dev/y", VG: "thin-snap", VGTags: "THINSNAP-OTHER"}} },
		"this pool's volume group thin-snap is on /dev/": func(f *survey) { f.groups = []pvReport{{Path: "/dev/y", VG: "thin-snap", VGTags: "THINSNAP-ID"}} },
	} {
		found := free
		change(&found)
		require.ErrorContains(t, spec.refuse(found, false), text)
		require.NotContains(t, spec.refuse(found, false).Error(), "mapped device", "LVM's names are those of groups and disks")
		if found.signatures == nil {
			require.ErrorContains(t, spec.refuse(found, true), text, "with force")
		} else {
			require.NoError(t, spec.refuse(found, true))
		}
	}
}

func TestGroupDisks(t *testing.T) {
	ours := func(path string) pvReport { return pvReport{Path: path, VG: "thin-snap", VGTags: "a,THINSNAP-OTHER"} }
	others := []pvReport{{Path: "/dev/a"}, {Path: "/dev/b", VG: "other", VGTags: "THINSNAP-ID"}, {Path: "/dev/c", VG: "thin-snap"}}
	disks, missing := groupDisks(append(others, ours("/dev/x"), ours("/dev/y")), "thin-snap")
	require.Equal(t, []string{"/dev/x", "/dev/y"}, disks)
	require.False(t, missing)
	disks, missing = groupDisks(append(others, ours("[unknown]"), ours("/dev/y")), "thin-snap")
	require.Equal(t, []string{"/dev/y"}, disks)
	require.True(t, missing)
	disks, _ = groupDisks(others, "thin-snap")
	require.Empty(t, disks)
}

func TestLVMNames(t *testing.T) {
	spec := testSpec()
	spec.VGUUID, spec.LVUUID = "fqEko0-VNER-RBUN-5AUQ-6wk8-wmBT-YDJ1H6", "GDtUe4-ENDk-bUjJ-aieF-NTZ5-cHco-wMOFWF"
	require.Equal(t, "LVM-fqEko0VNERRBUN5AUQ6wk8wmBTYDJ1H6GDtUe4ENDkbUjJaieFNTZ5cHcowMOFWF-tpool", spec.poolUUID())
	require.Equal(t, "thin--snap-pool_tmeta", deviceName(spec.Name, "pool_tmeta"))
	require.Regexp(t, `^[A-Z2-7]{6}(-[A-Z2-7]{4}){5}-[A-Z2-7]{6}$`, NewPVUUID())
}

func TestRemoveDangling(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vg")
	require.NoError(t, removeDangling(dir), "there are none")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.Symlink("gone", filepath.Join(dir, "pool")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a"), nil, 0o600))
	require.NoError(t, os.Symlink("a", filepath.Join(dir, "works")))
	require.NoError(t, removeDangling(dir))
	require.FileExists(t, filepath.Join(dir, "works"))
	require.NoFileExists(t, filepath.Join(dir, "pool"))
	require.NoError(t, os.Remove(filepath.Join(dir, "a")))
	require.NoError(t, removeDangling(dir))
	require.NoDirExists(t, dir)
}

// TestProgramsThatFail: an error has the program's output, and a program without an end is
// terminated.
func TestProgramsThatFail(t *testing.T) {
	_, err := run(t.Context(), nil, "sh", "-c", "echo out; echo '  no  disk ' >&2; exit 5")
	require.ErrorContains(t, err, "exit status 5: no disk")
	_, err = run(t.Context(), nil, "lvm-that-is-not-there")
	require.ErrorContains(t, err, "install LVM")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = run(ctx, nil, "sleep", "60")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
