// Command workload runs in a guest whose power is cut. It starts `thinsnap serve`, with containerd for images, on a
// disk of its own, and compares them with the model of their acknowledged operations. Then it uses them until the power
// is cut, and prints each operation before and after.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

type options struct {
	kind, thinsnap, containerd, runc string
	disk, filesystem, model          string
	seed                             uint64
	boot                             int
	finish                           bool
	log, base                        string
	snapshotsPool, imagesPool        string
	operations, points               int
}

func main() {
	var o options
	flag.StringVar(&o.kind, "kind", "snapshots", "kind of work: snapshots, or `images` and containers")
	flag.StringVar(&o.thinsnap, "thinsnap", "", "the thinsnap `program`")
	flag.StringVar(&o.containerd, "containerd", "", "the `directory` of containerd's programs")
	flag.StringVar(&o.runc, "runc", "", "the `directory` of runc")
	flag.StringVar(&o.disk, "disk", "", "the root's `device`; it is formatted if it is empty")
	flag.StringVar(&o.filesystem, "filesystem", "ext4", "the snapshots' file system")
	flag.StringVar(&o.model, "model", "", "the `file` with the model of the acknowledged operations")
	flag.Uint64Var(&o.seed, "seed", 1, "seed of the operations")
	flag.IntVar(&o.boot, "boot", 0, "the `number` of this boot, which is part of new names")
	flag.BoolVar(&o.finish, "finish", false, "remove everything and end in order")
	flag.StringVar(&o.log, "log", "", "a `device` for the record of the disk's writes, which is then replayed")
	flag.StringVar(&o.base, "base", "", "the `device` to replay the record to")
	flag.StringVar(&o.snapshotsPool, "snapshots-pool", "",
		"the `device` of thinsnap's pool; without it the pool is in files on the disk")
	flag.StringVar(&o.imagesPool, "images-pool", "", "the same, for the thinsnap of containerd")
	flag.IntVar(&o.operations, "operations", 60, "number of recorded operations")
	flag.IntVar(&o.points, "points", 10, "number of points at which the record is replayed")
	flag.Parse()
	if err := run(namespaces.WithNamespace(context.Background(), namespace), o); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	out := newJournal()
	if o.log != "" {
		return recordAndReplay(ctx, o, out)
	}
	m, err := readModel(o.model)
	if err != nil {
		return err
	}
	if err := mountDisk(o.disk, directory); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(o.seed, uint64(o.boot)))
	if o.kind == "images" {
		return containers(ctx, o, m, random, out)
	}
	return snapshots(ctx, o, m, random, out)
}

const (
	directory = "/run/powercut" // mount point of the disk
	namespace = "powercut"      // in containerd
)

func readModel(file string) (*model.Model, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m := model.New()
	return m, json.Unmarshal(content, m)
}

// snapshots runs the work with thinsnap alone.
func snapshots(ctx context.Context, o options, m *model.Model, random *rand.Rand, out *journal) error {
	out.phase("start")
	server, err := startServer(o, "powercut", o.snapshotsPool, filepath.Join(directory, "snapshots"))
	if err != nil {
		return err
	}
	defer server.Kill()
	out.phase("verify")
	v := verifier{sn: server.snapshotter, model: m, out: out, filesystem: o.filesystem}
	if err := v.run(ctx); err != nil {
		return err
	}
	if err := server.check(); err != nil {
		return err
	}
	out.phase("work")
	if !o.finish {
		w := &work{sn: server.snapshotter, random: random, out: out, model: m, prefix: fmt.Sprintf("%d-", o.boot)}
		return w.run(ctx, 0)
	}
	if err := removeAll(ctx, server.snapshotter); err != nil {
		return err
	}
	if err := server.stop(); err != nil {
		return err
	}
	return server.check()
}
