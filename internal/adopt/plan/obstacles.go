package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

func (p *Plan) obstruct(subject, remedy, format string, args ...any) {
	p.Obstacles = append(p.Obstacles, Obstacle{Subject: subject, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

// obstruct finds the obstacles in the records, after those of the reading.
func (j *judgement) obstruct() {
	j.sharedIDs()
	j.mappedDevices()
	subject := fmt.Sprintf("snapshotter %q", j.options.From)
	switch {
	case len(j.names) == 0:
		j.plan.obstruct(subject, "there is nothing to adopt: start with `thinsnap config default`",
			"containerd names no snapshots of it")
	case len(j.plan.Adoption.Pool.Existing.Adopted) == 0:
		j.plan.obstruct(subject, "start with `thinsnap config default`, and pull the images again",
			"no committed snapshot of it can be adopted whose file system identifies the pool")
	}
	if !j.pool.table.SkipBlockZeroing {
		return
	}
	table := j.pool.table
	table.SkipBlockZeroing = false
	target, err := table.Target(j.pool.sectors)
	if err != nil {
		j.plan.obstruct(j.poolSubject(), "load its table without skip_block_zeroing",
			"it does not zero new blocks, and its table cannot be parsed: %v", err)
		return
	}
	j.plan.Reload = &Reload{Table: target.Params, LVM: j.pool.lvm, Loaders: j.loaders}
}

func (j *judgement) poolSubject() string { return fmt.Sprintf("pool %q", j.pool.name) }

// poolState finds the obstacles in the state of the pool, if it is in the kernel.
func (j *judgement) poolState() {
	if j.pool.name == "" {
		return
	}
	in := func(remedy, format string, args ...any) { j.plan.obstruct(j.poolSubject(), remedy, format, args...) }
	resume := "have the program that suspended it resume it, or, if it has ended, run `dmsetup resume " + j.pool.name + "`"
	repair := "stop all users of the pool, deactivate it, and repair its metadata with thin_repair"
	if j.pool.lvm != "" {
		repair = "stop all users of the pool, deactivate it, and run `lvconvert --repair " + j.pool.lvm + "`"
	}
	switch s := j.pool.status; {
	case j.pool.suspended:
		in(resume, "it is suspended")
	case s.Mode == thin.ModeFail, s.Mode == thin.ModeError:
		in("see dmesg, and the devices below the pool", "it has failed")
	case s.NeedsCheck:
		in(repair, "the kernel has marked it needs_check")
	case s.Mode == thin.ModeReadOnly, j.pool.table.ReadOnly:
		in("extend its metadata if that is full, or see dmesg", "it is read-only")
	}
	if j.pool.status.HeldRoot != 0 {
		in("wait until the program that made it has ended; if none needs it, run `dmsetup message "+j.pool.name+
			" 0 release_metadata_snap`", "it has a metadata snapshot, and a pool can have only one")
	}
	if j.highest >= metadata.FirstInForeign {
		in("delete these volumes if they are not needed (do they belong to another thinsnap?)",
			"it has volumes with ids from %d on, which thinsnap needs: the highest is %d", metadata.FirstInForeign, j.highest)
	}
}

// sharedIDs finds snapshots that share a volume.
func (j *judgement) sharedIDs() {
	first := make(map[uint32]*snapshot)
	for _, s := range j.snapshots {
		if !s.hasDevice || !s.volume.exists {
			continue
		}
		other := first[s.device.ID]
		if other == nil {
			first[s.device.ID] = s
			continue
		}
		j.plan.obstruct(fmt.Sprintf("snapshot %q", s.Key),
			"remove all snapshots that have it in containerd, or restore a backup of its databases",
			"it has the volume %d, like snapshot %q", s.device.ID, other.Key)
	}
}

// mappedDevices finds the mapped devices to deactivate, and those in use.
func (j *judgement) mappedDevices() {
	adopted := make(map[uint32]string) // keys by volume id
	leftOut := make(map[uint32]bool)
	for _, s := range j.snapshots {
		switch {
		case !s.hasDevice:
		case s.needed:
			adopted[s.device.ID] = s.Key
		case s.flawed() && s.named:
			leftOut[s.device.ID] = true
		}
	}
	for _, m := range j.mapped {
		subject := fmt.Sprintf("mapped device %q", m.name)
		key, isAdopted := adopted[m.shows]
		record, isDevice := j.byDevice[m.name]
		isBuiltin := isDevice && m.uuid == "" && m.shows == record.ID
		switch {
		case isBuiltin && m.openCount == 0:
			j.plan.Idle = append(j.plan.Idle, m.name)
		case !isBuiltin && isAdopted:
			j.plan.obstruct(subject, "have the program that made it remove it, or run `dmsetup remove "+m.name+"`",
				"it shows the volume %d of snapshot %q, and the built-in did not make it", m.shows, key)
		case !isBuiltin, leftOut[m.shows] && !isAdopted:
		case len(m.mounts) > 0:
			j.plan.obstruct(subject,
				"stop the container or the virtual machine; if it has ended (nerdctl leaves the mount), unmount it",
				"it is mounted on %s", firstThree(m.mounts))
		default:
			j.plan.obstruct(subject, "stop the container or the virtual machine; `fuser -v /dev/mapper/"+m.name+"` shows which",
				"it is in use (open count %d)", m.openCount)
		}
	}
	slices.Sort(j.plan.Idle)
}

// firstThree joins up to three, with the number of the others.
func firstThree(all []string) string {
	const most = 3
	if len(all) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
	}
	return strings.Join(all, ", ")
}
