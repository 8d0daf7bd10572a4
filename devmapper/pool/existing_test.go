package pool

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNamesOfExistingPools(t *testing.T) {
	for device, want := range map[string]struct{ name, volume string }{
		"thinpool":                       {"thinpool", ""},
		"/dev/mapper/thinpool":           {"thinpool", ""},
		"/dev/mapper/vg-pool":            {"vg-pool", "vg/pool"},
		"vg/pool":                        {"vg-pool", "vg/pool"},
		"/dev/vg/pool":                   {"vg-pool", "vg/pool"},
		"my-vg/the--pool":                {"my--vg-the----pool", "my-vg/the--pool"},
		"my--vg-the----pool":             {"my--vg-the----pool", "my-vg/the--pool"},
		"/dev/mapper/my--vg-pool-tpool":  {"my--vg-pool-tpool", "my-vg/pool"},
		"a-b-c":                          {"a-b-c", ""},
		"a--b":                           {"a--b", ""},
		"/dev/mapper/thinpool-with-more": {"thinpool-with-more", ""},
	} {
		name := DeviceName(device)
		require.Equal(t, want.name, name)
		volume, _ := lvmVolume(name)
		require.Equal(t, want.volume, volume, device)
		require.Equal(t, name, DeviceName(name))
	}
}

func TestExistingPoolsOfLVM(t *testing.T) {
	for _, tc := range []struct {
		spec ExistingSpec
		want string
	}{
		{ExistingSpec{Device: "vg/pool"}, "vg/pool"},
		{ExistingSpec{Device: "/dev/vg/pool"}, "vg/pool"},
		{ExistingSpec{Device: "/dev/mapper/vg-pool"}, ""},
		{ExistingSpec{Device: "vg-pool", UUID: "LVM-x-tpool", BlockBytes: 1}, "vg/pool"},
		{ExistingSpec{Device: "vg-pool", UUID: "mine", BlockBytes: 1}, ""},
		{ExistingSpec{Device: "vg-pool", BlockBytes: 1}, ""},
	} {
		volume, _ := tc.spec.vgLV()
		require.Equal(t, tc.want, volume, tc.spec)
	}
}
