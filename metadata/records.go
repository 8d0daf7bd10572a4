package metadata

import (
	"encoding/binary"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// encodeSnapshot leaves out the snapshot's key, which is the key in the bucket.
func encodeSnapshot(s Snapshot) []byte {
	size := 64 + len(s.Parent) + len(s.Filesystem)
	for k, v := range s.Labels {
		size += len(k) + len(v) + 6
	}
	e := newEncoder(size)
	e.uvarint(uint64(s.Kind))
	e.uvarint(uint64(s.VolumeID))
	e.uvarint(s.Size)
	e.string(s.Parent)
	e.string(s.Filesystem)
	e.time(s.Created)
	e.time(s.Updated)
	e.varint(s.Usage.Bytes)
	e.varint(s.Usage.Inodes)
	e.labels(s.Labels)
	e.uvarint(s.Client)
	e.uvarint(uint64(s.Base))
	e.varint(s.Usage.Own)
	e.bool(s.Usage.Exact)
	return e.b
}

func decodeSnapshot(key string, b []byte) (Snapshot, error) { return newDecoder(b).snapshot(key) }

func (d *decoder) snapshot(key string) (Snapshot, error) {
	s := Snapshot{Key: key}
	s.Kind = snapshots.Kind(d.max(uint64(snapshots.KindCommitted)))
	s.VolumeID = uint32(d.max(MaxDevice))
	s.Size = d.uvarint()
	s.Parent = d.string()
	s.Filesystem = d.string()
	s.Created = d.time()
	s.Updated = d.time()
	s.Usage.Bytes = d.varint()
	s.Usage.Inodes = d.varint()
	s.Labels = d.labels()
	if d.version >= 2 {
		s.Client = d.uvarint()
		s.Base = uint32(d.max(MaxDevice))
	}
	if d.version >= 3 {
		s.Usage.Own = d.varint()
		s.Usage.Exact = d.bool()
	}
	if err := d.finish(); err != nil || s.Kind == snapshots.KindUnknown {
		return Snapshot{}, damaged("snapshot %q", key)
	}
	return s, nil
}

func encodePool(p PoolRecord) []byte {
	e := newEncoder(256)
	e.string(p.ID)
	e.string(p.Mode)
	e.string(p.Name)
	e.uvarint(p.BlockSize)
	e.uvarint(p.TransactionID)
	e.time(p.Created)
	e.bool(p.Complete)
	// The first part is always stored, the others up to the last one that is not empty.
	modes, last := p.modes(), 0
	for i, m := range modes {
		if !m.part.isZero() {
			last = i
		}
	}
	for _, m := range modes[:last+1] {
		m.part.encode(e)
	}
	return e.b
}

func decodePool(b []byte) (PoolRecord, error) {
	d := newDecoder(b)
	var p PoolRecord
	p.ID = d.string()
	p.Mode = d.string()
	p.Name = d.string()
	p.BlockSize = d.uvarint()
	p.TransactionID = d.uvarint()
	p.Created = d.time()
	p.Complete = d.bool()
	for i, m := range p.modes() {
		if i == 0 || d.more() {
			m.part.decode(d)
		}
	}
	if err := d.finish(); err != nil {
		return PoolRecord{}, damaged("pool record")
	}
	return p, nil
}

func (f *LoopFiles) isZero() bool { return *f == LoopFiles{} }

func (f *LoopFiles) identified() bool { return true } // by the pool's ID

func (f *LoopFiles) encode(e *encoder) {
	e.string(f.DataFile)
	e.string(f.MetadataFile)
	e.uvarint(f.SectorBytes)
	e.bool(f.Allocated)
}

func (f *LoopFiles) decode(d *decoder) {
	f.DataFile = d.string()
	f.MetadataFile = d.string()
	if d.version >= 2 {
		f.SectorBytes = d.uvarint()
		f.Allocated = d.bool()
	}
}

func (v *LVMPool) isZero() bool { return *v == LVMPool{} }

func (v *LVMPool) identified() bool { return true } // by LVM's UUIDs

func (v *LVMPool) encode(e *encoder) {
	e.string(v.Disk)
	e.string(v.PVUUID)
	e.string(v.VGUUID)
	e.string(v.LVUUID)
	e.uvarint(v.DataPercent)
	e.uvarint(v.MetadataPercent)
}

func (v *LVMPool) decode(d *decoder) {
	v.Disk = d.string()
	v.PVUUID = d.string()
	v.VGUUID = d.string()
	v.LVUUID = d.string()
	v.DataPercent = d.uvarint()
	v.MetadataPercent = d.uvarint()
}

func (p *ExistingPool) isZero() bool {
	return p.MappedDevice == "" && p.UUID == "" && len(p.Adopted) == 0
}

func (p *ExistingPool) identified() bool { return p.UUID != "" }

func (p *ExistingPool) encode(e *encoder) {
	e.string(p.MappedDevice)
	e.string(p.UUID)
	e.uvarint(uint64(len(p.Adopted)))
	for _, v := range p.Adopted {
		e.uvarint(uint64(v.VolumeID))
		e.string(v.Filesystem)
		e.string(v.UUID)
	}
}

func (p *ExistingPool) decode(d *decoder) {
	p.MappedDevice = d.string()
	p.UUID = d.string()
	if d.version < 4 {
		return
	}
	for range d.max(MaxAdopted) {
		p.Adopted = append(p.Adopted, AdoptedVolume{
			VolumeID: uint32(d.max(FirstInForeign - 1)), Filesystem: d.string(), UUID: d.string(),
		})
	}
}

// baseKey sorts base volumes by size.
func baseKey(fs string, size uint64) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(fs)), size), fs...)
}

// encodeBase leaves out the file system and the size, which are in the key.
func encodeBase(b BaseRecord) []byte {
	e := newEncoder(128)
	e.uvarint(uint64(b.VolumeID))
	e.string(b.UUID)
	e.strings(b.MkfsOptions)
	e.time(b.Created)
	return e.b
}

func decodeBase(k, v []byte) (BaseRecord, error) {
	if len(k) <= 8 {
		return BaseRecord{}, damaged("base volume %q", k)
	}
	b := BaseRecord{Size: binary.BigEndian.Uint64(k), Filesystem: string(k[8:])}
	d := newDecoder(v)
	b.VolumeID = uint32(d.max(MaxDevice))
	b.UUID = d.string()
	b.MkfsOptions = d.strings()
	b.Created = d.time()
	if err := d.finish(); err != nil {
		return BaseRecord{}, damaged("base volume %s/%d", b.Filesystem, b.Size)
	}
	return b, nil
}

// encodeTrash leaves out the device id, which is the key in the bucket.
func encodeTrash(t TrashRecord) []byte {
	e := newEncoder(64 + len(t.Key))
	e.uvarint(t.Size)
	e.string(t.Key)
	e.string(t.Filesystem)
	e.time(t.Since)
	return e.b
}

func decodeTrash(k, v []byte) (TrashRecord, error) {
	id, err := decodeDevice(k)
	if err != nil {
		return TrashRecord{}, err
	}
	d := newDecoder(v)
	t := TrashRecord{VolumeID: id}
	t.Size = d.uvarint()
	t.Key = d.string()
	t.Filesystem = d.string()
	t.Since = d.time()
	if err := d.finish(); err != nil {
		return TrashRecord{}, damaged("trash record of device %d", id)
	}
	return t, nil
}

func encodeOwner(o Owner) []byte {
	e := newEncoder(8 + len(o.Key))
	e.uvarint(uint64(o.Kind))
	e.string(o.Key)
	return e.b
}

func decodeOwner(b []byte) Owner {
	d := newDecoder(b)
	o := Owner{Kind: OwnerKind(d.max(uint64(OwnerKept))), Key: d.string()}
	if d.finish() != nil {
		return Owner{}
	}
	return o
}

func encodeDevice(id uint32) []byte {
	return binary.BigEndian.AppendUint32(make([]byte, 0, 4), id)
}

func decodeDevice(b []byte) (uint32, error) {
	if len(b) != 4 {
		return 0, damaged("device id 0x%x", b)
	}
	return binary.BigEndian.Uint32(b), nil
}
