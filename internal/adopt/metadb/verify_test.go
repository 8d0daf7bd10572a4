package metadb

import (
	"context"
	"encoding/binary"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// TestVerify: Verify finds every kind of difference.
func TestVerify(t *testing.T) {
	path, _ := everything(t)
	names, err := Read(t.Context(), path, old)
	require.NoError(t, err)
	err = Verify(t.Context(), path, names, fresh, nil)
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.ErrorContains(t, err, `namespace "dirty" names the snapshotter "devmapper": do not use this file`)
	require.NoError(t, Rename(t.Context(), path, old, fresh, nil))
	require.NoError(t, Verify(t.Context(), path, names, fresh, nil))
	k8s := func(tx *bolt.Tx, rest ...string) *bolt.Bucket {
		return bucket(tx, append([]string{"v1", "k8s.io"}, rest...)...)
	}
	for want, change := range map[string]func(tx *bolt.Tx){
		`namespace "k8s.io" names the snapshotter "devmapper"`: func(tx *bolt.Tx) { put(k8s(tx, keyContainers, "no-snapshot"), keySnapshotter, old) },
		`something has changed`:                                func(tx *bolt.Tx) { put(k8s(tx, keyContainers, "devmapper"), "image", "another") },
		`something has changed that`: func(tx *bolt.Tx) {
			_ = k8s(tx, keySnapshots, fresh, "sha256:1").SetSequence(1)
		},
		`sequence was 8, and is 4 now`: func(tx *bolt.Tx) { _ = k8s(tx, keySnapshots, fresh).SetSequence(4) },
		`the number of snapshots was 5, and is 4 now`: func(tx *bolt.Tx) {
			_ = k8s(tx, keySnapshots, fresh).DeleteBucket([]byte("view"))
		},
		`snapshot "c1" differs`: func(tx *bolt.Tx) { put(k8s(tx, keySnapshots, fresh, "c1"), keyName, "k8s.io/5/c1") },
		`the number of containers was 2, and is 1 now`: func(tx *bolt.Tx) {
			put(k8s(tx, keyContainers, "no-snapshot"), keySnapshotter, "overlayfs")
		},
		`container "c1" differs`: func(tx *bolt.Tx) { put(k8s(tx, keyContainers, "c1"), keySnapshotKey, "view") },
		`lease "keep" differs`:   func(tx *bolt.Tx) { _ = k8s(tx, keyLeases, "keep", keySnapshots, fresh).Delete([]byte("view")) },
		`the number of labels was 8, and is 7 now`: func(tx *bolt.Tx) {
			_ = k8s(tx, keySandboxes, "pod", "labels").Delete([]byte(labelRef + fresh + "/pause"))
		},
		`label "sandboxes/pod containerd.io/gc.ref.snapshot.thinsnap/pause" differs`: func(tx *bolt.Tx) {
			put(k8s(tx, keySandboxes, "pod", "labels"), labelRef+fresh+"/pause", "c1")
		},
		`it should be the default: true, and is: false`: func(tx *bolt.Tx) { put(k8s(tx, "labels"), labelDefault, "overlayfs") },
		`namespace "z" names the snapshotter "thinsnap"`: func(tx *bolt.Tx) {
			put(bucket(tx, "v1", "z", keyLeases, "l", keySnapshots, fresh), "x", "")
		},
		`a bucket of snapshots should exist: true`: func(tx *bolt.Tx) {
			_ = bucket(tx, "v1", "emptied", keySnapshots).DeleteBucket([]byte(fresh))
			put(bucket(tx, "v1", "emptied", keyLabels), labelDefault, fresh)
		},
		`namespace "emptied" names the snapshotter "devmapper"`: func(tx *bolt.Tx) {
			bucket(tx, "v1", "emptied", keySnapshots, old)
		},
		`the version was 4`: func(tx *bolt.Tx) { put(bucket(tx, "v1"), keyVersion, string(binary.AppendVarint(nil, 3))) },
		`namespace "references2" names the snapshotter "thinsnap"`: func(tx *bolt.Tx) {
			_ = copyBucket(context.Background(), bucket(tx, "v1", "references2"), bucket(tx, "v1", "references"))
			_ = bucket(tx, "v1").DeleteBucket([]byte("references"))
		},
	} {
		t.Run(want, func(t *testing.T) {
			path := copyFile(t, path)
			edit(t, path, func(tx *bolt.Tx) error { change(tx); return nil })
			err := Verify(t.Context(), path, names, fresh, nil)
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			require.ErrorContains(t, err, want)
		})
	}
}
