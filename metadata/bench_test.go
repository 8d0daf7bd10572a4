package metadata

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func chainID(i int) string {
	return fmt.Sprintf("default/%d/sha256:%x", i, sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)}))
}

// fill creates n snapshots with containerd's names and labels: chains of ten committed layers, with
// two active children at the end of each.
func fill(t testing.TB, s *Store, n int) {
	t.Helper()
	const chunk = 1200
	for from := 0; from < n; from += chunk {
		update(t, s, func(tx *Tx) {
			lease, err := tx.Lease(chunk)
			require.NoError(t, err)
			parent := ""
			for i := range min(chunk, n-from) {
				key := chainID(from + i)
				sn := active(key, parent, lease.First+uint32(i))
				sn.Labels = map[string]string{
					"containerd.io/gc.root":                        noon.String(),
					"containerd.io/snapshot.ref":                   key,
					"containerd.io/snapshot/thinsnap.io/something": "10GiB",
				}
				if i%12 < 10 {
					sn.Key = "extract-" + key
				}
				require.NoError(t, tx.Create(sn))
				if i%12 < 10 {
					_, err := tx.Commit(key, sn.Key, CommitChange{Now: noon, Labels: sn.Labels, Usage: Usage{Bytes: 4096, Inodes: 1}})
					require.NoError(t, err)
					parent = key
				}
				if i%12 == 11 {
					parent = ""
				}
			}
			require.NoError(t, tx.CloseLease(lease.First))
		})
	}
}

// BenchmarkUpdate alternates Prepare and Remove in stores of several sizes.
func BenchmarkUpdate(b *testing.B) {
	for _, workers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			s := newStore(b, Options{})
			fill(b, s, 1200)
			var ids, left atomic.Int64
			update(b, s, func(tx *Tx) {
				l, err := tx.Lease(MaxDevice)
				require.NoError(b, err)
				ids.Store(int64(l.First))
			})
			parent := chainID(9)
			before := s.Stats()
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for key := ""; left.Add(-1) >= 0; {
						old, id := key, uint32(ids.Add(1))
						key = ""
						if old == "" {
							key = fmt.Sprintf("key-%d", id)
						}
						if err := s.Update(b.Context(), func(tx *Tx) error {
							if old == "" {
								return tx.Create(active(key, parent, id))
							}
							sn, err := tx.Remove(old, noon)
							if err != nil {
								return err
							}
							return tx.ClearTrash(sn.VolumeID)
						}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			after := s.Stats()
			b.ReportMetric(float64(after.Transactions-before.Transactions)/float64(b.N), "tx/op")
		})
	}
}

func BenchmarkGet(b *testing.B) {
	s := newStore(b, Options{})
	fill(b, s, 12_000)
	key := chainID(6000)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.View(b.Context(), func(tx *Tx) error {
			_, err := tx.Get(key)
			return err
		}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen must not take longer with more snapshots.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{0, 1200, 100_000} {
		b.Run(fmt.Sprintf("snapshots=%d", n), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "metadata.db")
			s, err := Open(path, Options{})
			require.NoError(b, err)
			fill(b, s, n)
			require.NoError(b, s.Close())
			for b.Loop() {
				s, err := Open(path, Options{LockTimeout: time.Second})
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
			info, err := os.Stat(path)
			require.NoError(b, err)
			b.ReportMetric(float64(info.Size())/(1<<20), "MiB")
		})
	}
}
