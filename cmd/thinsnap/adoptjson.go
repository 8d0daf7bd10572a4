package main

import (
	"time"

	"github.com/thinsnap/thinsnap/internal/adopt"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/setup"
)

// adoptionReport is the JSON of a plan. docs/migration.md documents the fields.
type adoptionReport struct {
	Possible       bool               `json:"possible"` // without obstacles and damaged snapshots
	Pool           string             `json:"pool"`
	RootPath       string             `json:"root_path"`
	ContainerdRoot string             `json:"containerd_root"`
	Root           string             `json:"root"`
	Proxy          string             `json:"proxy"`
	Snapshots      []adoptionRow      `json:"snapshots"`
	Damaged        int                `json:"damaged"` // of Snapshots, those that prevent the adoption
	Obstacles      []adoptionObstacle `json:"obstacles"`
	IdleDevices    []string           `json:"idle_devices"`
	Reload         *adoptionReload    `json:"reload,omitempty"`
	Foreign        int                `json:"foreign"` // volumes in no database
	Configuration  adoptionChange     `json:"configuration"`
}

// adoptedReport is the JSON of a completed adoption.
type adoptedReport struct {
	AdoptedAt      time.Time      `json:"adopted_at"`
	Pool           string         `json:"pool"`
	RootPath       string         `json:"root_path"`
	ContainerdRoot string         `json:"containerd_root"`
	Root           string         `json:"root"`
	Proxy          string         `json:"proxy"`
	Adopted        int            `json:"adopted"`
	LeftOut        int            `json:"left_out"`
	Kept           int            `json:"kept"`
	Configuration  adoptionChange `json:"configuration"`
}

type adoptionRow struct {
	Key       string `json:"key,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Kind      string `json:"kind"`
	Size      uint64 `json:"size_bytes"`
	DeviceID  uint32 `json:"device_id"`
	Device    string `json:"device,omitempty"`
	Becomes   string `json:"becomes"`
	Problem   string `json:"problem,omitempty"`
	Remedy    string `json:"remedy,omitempty"`
}

type adoptionObstacle struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
	Remedy  string `json:"remedy,omitempty"`
}

// adoptionReload is the JSON of the change that makes the pool zero new blocks.
type adoptionReload struct {
	Table   string   `json:"table,omitempty"`
	LVM     string   `json:"lvm,omitempty"`
	Loaders []string `json:"loaders"`
}

// adoptionChange is the JSON of the change of containerd's configuration.
type adoptionChange struct {
	Files []string `json:"files"`
	Patch string   `json:"patch"`
	Error string   `json:"error,omitempty"` // the reason why the change is unknown
}

func newAdoptionReport(p plan.Plan, change setup.Difference, err error) adoptionReport {
	o := p.Options
	r := adoptionReport{
		Possible: p.Possible(), Pool: o.Pool, RootPath: o.RootPath, ContainerdRoot: o.ContainerdRoot, Root: o.Config.Root,
		Proxy: o.Proxy, Snapshots: make([]adoptionRow, len(p.Rows)), Damaged: p.Damaged(),
		Obstacles: make([]adoptionObstacle, len(p.Obstacles)), IdleDevices: append([]string{}, p.Idle...), Foreign: p.Foreign,
		Configuration: newAdoptionChange(change, err),
	}
	for i, row := range p.Rows {
		r.Snapshots[i] = adoptionRow{
			Key: row.Key, Namespace: row.Namespace, Name: row.Name, Kind: row.Kind, Size: row.Bytes, DeviceID: row.VolumeID,
			Device: row.Device, Becomes: string(row.Becomes), Problem: row.Problem, Remedy: row.Remedy,
		}
	}
	for i, x := range p.Obstacles {
		r.Obstacles[i] = adoptionObstacle(x)
	}
	if p.Reload != nil {
		r.Reload = &adoptionReload{p.Reload.Table, p.Reload.LVM, append([]string{}, p.Reload.Loaders...)}
	}
	return r
}

func newAdoptedReport(o plan.Options, r adopt.Record, change setup.Difference, err error) adoptedReport {
	return adoptedReport{
		AdoptedAt: r.Ended, Pool: r.Pool, RootPath: r.RootPath, ContainerdRoot: r.ContainerdRoot, Root: o.Config.Root,
		Proxy: r.Proxy, Adopted: r.Snapshots, LeftOut: r.Left, Kept: r.Kept, Configuration: newAdoptionChange(change, err),
	}
}

func newAdoptionChange(change setup.Difference, err error) adoptionChange {
	c := adoptionChange{Files: append([]string{}, change.Files...), Patch: change.Patch}
	if err != nil {
		c.Error = oneLine(err)
	}
	return c
}
