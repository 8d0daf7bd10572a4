package metadata

import (
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestLease(t *testing.T) {
	s := newStoreFrom(t, 1<<23)
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(0)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		for _, want := range []LeaseRecord{{First: 1 << 23, Last: 1<<23 + 63}, {First: 1<<23 + 64, Last: 1<<23 + 64}, {First: 1<<23 + 65, Last: 1<<23 + 74}} {
			got, err := tx.Lease(want.Last - want.First + 1)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		require.ErrorIs(t, tx.CloseLease(1<<23+1), errdefs.ErrNotFound)
		require.NoError(t, tx.CloseLease(1<<23+64))
		require.ErrorIs(t, tx.CloseLease(1<<23+64), errdefs.ErrNotFound)
		all, err := tx.Leases()
		require.NoError(t, err)
		require.Equal(t, []LeaseRecord{{First: 1 << 23, Last: 1<<23 + 63}, {First: 1<<23 + 65, Last: 1<<23 + 74}}, all)
		for device, want := range map[uint32]bool{
			0: false, 1<<23 - 1: false, 1 << 23: true, 1<<23 + 63: true, 1<<23 + 64: false,
			1<<23 + 65: true, 1<<23 + 74: true, 1<<23 + 75: false, MaxDevice: false, 1<<32 - 1: false,
		} {
			_, leased, err := tx.leaseOf(device)
			require.NoError(t, err)
			require.Equal(t, want, leased, device)
		}
		// Ids that were leased once are not leased again.
		for _, l := range all {
			require.NoError(t, tx.CloseLease(l.First))
		}
		got, err := tx.Lease(1)
		require.NoError(t, err)
		require.Equal(t, LeaseRecord{First: 1<<23 + 75, Last: 1<<23 + 75}, got)
	})
}

// The id of a foreign volume leaves its lease; its neighbours stay.
func TestDisown(t *testing.T) {
	s := newStore(t, Options{})
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(6)
		require.NoError(t, err)
		require.NoError(t, tx.Create(active("a", "", 5)))
		require.ErrorIs(t, tx.Disown(5), errdefs.ErrFailedPrecondition)
		for _, step := range []struct {
			device uint32
			left   []LeaseRecord
		}{
			{3, []LeaseRecord{{First: 1, Last: 2}, {First: 4, Last: 6}}},
			{3, []LeaseRecord{{First: 1, Last: 2}, {First: 4, Last: 6}}},
			{7, []LeaseRecord{{First: 1, Last: 2}, {First: 4, Last: 6}}},
			{6, []LeaseRecord{{First: 1, Last: 2}, {First: 4, Last: 5}}},
			{1, []LeaseRecord{{First: 2, Last: 2}, {First: 4, Last: 5}}},
			{2, []LeaseRecord{{First: 4, Last: 5}}},
		} {
			require.NoError(t, tx.Disown(step.device))
			left, err := tx.Leases()
			require.NoError(t, err)
			require.Equal(t, step.left, left)
			require.ErrorIs(t, tx.requireClaimable(step.device), errdefs.ErrFailedPrecondition)
		}
		got, err := tx.Lease(1)
		require.NoError(t, err)
		require.Equal(t, LeaseRecord{First: 7, Last: 7}, got, "its id is not leased again")
	})
}

func TestLeaseAtTheEnd(t *testing.T) {
	s := newStoreFrom(t, MaxDevice-69)
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(64)
		require.NoError(t, err)
		got, err := tx.Lease(64)
		require.NoError(t, err)
		require.Equal(t, LeaseRecord{First: MaxDevice - 5, Last: MaxDevice}, got)
		require.NoError(t, tx.Create(active("last", "", MaxDevice)))
	})
	err := s.Update(t.Context(), func(tx *Tx) error {
		_, err := tx.Lease(1)
		return err
	})
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.ErrorContains(t, err, "migrate to a new pool")

	s = newStore(t, Options{})
	update(t, s, func(tx *Tx) {
		got, err := tx.Lease(1<<32 - 1)
		require.NoError(t, err)
		require.Equal(t, LeaseRecord{First: 1, Last: MaxDevice}, got)
	})
}

func TestLeaseAfterReopening(t *testing.T) {
	path := t.TempDir() + "/metadata.db"
	for i := range 3 {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		update(t, s, func(tx *Tx) {
			l, err := tx.Lease(1)
			require.NoError(t, err)
			require.EqualValues(t, 1+i, l.First)
		})
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Empty(t, problems)
		require.NoError(t, s.Close())
	}
}

func TestPoolOfLVM(t *testing.T) {
	s := newStore(t, Options{})
	record := PoolRecord{
		ID: "0e1f", Mode: "direct-lvm", Name: "thinsnap", BlockSize: 65536, Created: noon, Complete: true,
		LVM: LVMPool{Disk: "/dev/sdx", PVUUID: "p", VGUUID: "v", LVUUID: "l", DataPercent: 95, MetadataPercent: 1},
	}
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetPool(record)) })
	view(t, s, func(tx *Tx) {
		got, err := tx.Pool()
		require.NoError(t, err)
		require.Equal(t, record, got)
	})
}

func TestPool(t *testing.T) {
	s := newStore(t, Options{})
	record := PoolRecord{
		ID: "0e1f", Mode: "loop", Name: "thinsnap", BlockSize: 65536, TransactionID: 41, Created: noon, Complete: true,
		Loop: LoopFiles{DataFile: "/data", MetadataFile: "/metadata"},
	}
	update(t, s, func(tx *Tx) {
		_, err := tx.Pool()
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		_, err = tx.Lease(1)
		require.NoError(t, err)
		_, err = tx.Pool()
		require.ErrorIs(t, err, errdefs.ErrNotFound, "a lease records no pool")
		require.ErrorIs(t, tx.SetPool(PoolRecord{Name: "x"}), errdefs.ErrInvalidArgument)
		require.NoError(t, tx.SetPool(record))
	})
	for _, tc := range []struct {
		mode string
		adds uint64
	}{{"loop", 1}, {"direct-lvm", 1}, {ModeExisting, 0}} {
		record.Mode = tc.mode
		update(t, s, func(tx *Tx) { require.NoError(t, tx.SetPool(record)) })
		update(t, s, func(tx *Tx) {
			_, err := tx.Lease(64)
			require.NoError(t, err)
		})
		record.TransactionID += tc.adds
		view(t, s, func(tx *Tx) {
			got, err := tx.Pool()
			require.NoError(t, err)
			require.Equal(t, record, got)
		})
	}
}

// Lower ids may have foreign volumes.
func TestLeaseInAnExistingPool(t *testing.T) {
	s := newStore(t, Options{})
	record := PoolRecord{
		ID: "0e1f", Mode: ModeExisting, Name: "thinsnap", BlockSize: 65536, TransactionID: 7, Created: noon, Complete: true,
		Existing: ExistingPool{MappedDevice: "vg-pool", UUID: "LVM-x-tpool"},
	}
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetPool(record)) })
	update(t, s, func(tx *Tx) {
		_, left, err := tx.DeviceIDs()
		require.NoError(t, err)
		require.EqualValues(t, 1<<23, left)
		l, err := tx.Lease(64)
		require.NoError(t, err)
		require.Equal(t, LeaseRecord{First: 1 << 23, Last: 1<<23 + 63}, l)
	})
	update(t, s, func(tx *Tx) {
		l, err := tx.Lease(64)
		require.NoError(t, err)
		require.EqualValues(t, 1<<23+64, l.First)
		used, _, err := tx.DeviceIDs()
		require.NoError(t, err)
		require.EqualValues(t, 128, used)
		got, err := tx.Pool()
		require.NoError(t, err)
		require.Equal(t, record, got, "nothing is stamped")
	})
}

func TestBases(t *testing.T) {
	s := newStore(t, Options{})
	small := BaseRecord{Filesystem: "xfs", Size: 1 << 30, VolumeID: 2, UUID: "x"}
	update(t, s, func(tx *Tx) {
		_, err := tx.Base("ext4", 10<<30)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.ErrorIs(t, tx.SetBase(ext4Base(1)), errdefs.ErrFailedPrecondition, "not leased")
		_, err = tx.Lease(64)
		require.NoError(t, err)
		require.NoError(t, tx.SetBase(ext4Base(1)))
		require.NoError(t, tx.SetBase(small))
		again := ext4Base(1)
		again.UUID = "other"
		require.NoError(t, tx.SetBase(again))
		require.ErrorIs(t, tx.SetBase(ext4Base(3)), errdefs.ErrAlreadyExists)
		require.ErrorIs(t, tx.SetBase(BaseRecord{Filesystem: "ext4", Size: 1, VolumeID: 2}), errdefs.ErrFailedPrecondition)
		require.ErrorIs(t, tx.SetBase(BaseRecord{Size: 1, VolumeID: 4}), errdefs.ErrInvalidArgument)

		got, err := tx.Base("ext4", 10<<30)
		require.NoError(t, err)
		require.Equal(t, again, got)
		_, err = tx.Base("ext4", 1<<30)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		small.Created = small.Created.UTC()
		all, err := tx.Bases()
		require.NoError(t, err)
		require.Equal(t, []BaseRecord{small, again}, all)
		owner, ok := tx.Owner(1)
		require.True(t, ok)
		require.Equal(t, Owner{OwnerBase, "ext4/10737418240"}, owner)
		require.Equal(t, "base volume ext4/10737418240", owner.String())
	})
}

func TestDiscardBase(t *testing.T) {
	s := furnished(t)
	base := ext4Base(1)
	update(t, s, func(tx *Tx) {
		_, err := tx.DiscardBase("ext4", base.Size+1, noon)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		look := Snapshot{Key: "empty", Kind: snapshots.KindView, VolumeID: 1, Size: base.Size, Filesystem: "ext4"}
		require.NoError(t, tx.Create(look))
		_, err = tx.DiscardBase("ext4", base.Size, noon)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		_, err = tx.Remove("empty", noon)
		require.NoError(t, err)

		before, err := tx.TrashCount()
		require.NoError(t, err)
		was, err := tx.DiscardBase("ext4", base.Size, noon)
		require.NoError(t, err)
		require.Equal(t, base.UUID, was.UUID)
		after, err := tx.TrashCount()
		require.NoError(t, err)
		require.Equal(t, before+1, after)
		state, err := tx.VolumeState(1)
		require.NoError(t, err)
		require.Equal(t, VolumeTrash, state)
		entry, err := tx.TrashEntry(1)
		require.NoError(t, err)
		require.Equal(t, "base volume ext4/10737418240", entry.Key)

		lease, err := tx.Lease(1)
		require.NoError(t, err)
		require.NoError(t, tx.SetBase(ext4Base(lease.First)), "another one of the same size")
	})
	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestClearTrash(t *testing.T) {
	s := furnished(t)
	update(t, s, func(tx *Tx) {
		require.ErrorIs(t, tx.ClearTrash(4), errdefs.ErrNotFound, "it is in use")
		for _, key := range []string{"work", "alone"} {
			_, err := tx.Remove(key, noon)
			require.NoError(t, err)
		}
		entry, err := tx.TrashEntry(4)
		require.NoError(t, err)
		for limit, want := range []int{0, 1, 2, 2} {
			some, err := tx.TrashSample(limit)
			require.NoError(t, err)
			require.Len(t, some, want)
			if want > 0 {
				require.Equal(t, entry, some[0])
			}
		}
		require.Equal(t, TrashRecord{VolumeID: 4, Size: 10 << 30, Key: "work", Filesystem: "ext4", Since: noon}, entry)
		require.NoError(t, tx.ClearTrash(4))
		_, err = tx.TrashEntry(4)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.ErrorIs(t, tx.ClearTrash(4), errdefs.ErrNotFound)
		_, owned := tx.Owner(4)
		require.False(t, owned)
		n, err := tx.TrashCount()
		require.NoError(t, err)
		require.Equal(t, 1, n)
		trash, err := tx.Trash()
		require.NoError(t, err)
		require.Len(t, trash, 1)
		require.EqualValues(t, 5, trash[0].VolumeID)
	})
}

func TestDeviceIDs(t *testing.T) {
	s := newStoreFrom(t, MaxDevice-9)
	for _, tc := range []struct{ lease, used, left uint32 }{{0, 0, 10}, {4, 4, 6}, {64, 10, 0}} {
		update(t, s, func(tx *Tx) {
			if tc.lease > 0 {
				_, err := tx.Lease(tc.lease)
				require.NoError(t, err)
			}
			used, left, err := tx.DeviceIDs()
			require.NoError(t, err)
			require.Equal(t, []uint32{tc.used, tc.left}, []uint32{used, left})
		})
	}
}
