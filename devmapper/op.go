package devmapper

import "golang.org/x/sys/unix"

// op is an operation of a Control. Two operations can have the same request number and differ in
// the flags.
type op int

const (
	opVersion op = iota
	opList
	opCreate
	opLoad
	opSuspend
	opResume
	opRemove
	opInfo
	opStatus
	opTable
	opDeps
	opMessage
	opArmPoll
	opVersions
	opCount
)

type request struct {
	name   string
	number uint32
}

func (o op) request() request {
	return [opCount]request{
		opVersion:  {"version", unix.DM_VERSION},
		opList:     {"list", unix.DM_LIST_DEVICES},
		opCreate:   {"create", unix.DM_DEV_CREATE},
		opLoad:     {"load", unix.DM_TABLE_LOAD},
		opSuspend:  {"suspend", unix.DM_DEV_SUSPEND},
		opResume:   {"resume", unix.DM_DEV_SUSPEND},
		opRemove:   {"remove", unix.DM_DEV_REMOVE},
		opInfo:     {"info", unix.DM_DEV_STATUS},
		opStatus:   {"status", unix.DM_TABLE_STATUS},
		opTable:    {"table", unix.DM_TABLE_STATUS},
		opDeps:     {"deps", unix.DM_TABLE_DEPS},
		opMessage:  {"message", unix.DM_TARGET_MSG},
		opArmPoll:  {"arm poll", unix.DM_DEV_ARM_POLL},
		opVersions: {"versions", unix.DM_LIST_VERSIONS},
	}[o]
}

func (o op) String() string { return o.request().name }

// changes reports whether a request must not be sent twice: the first may have had its effect
// although the answer did not fit.
func (o op) changes() bool {
	switch o {
	case opVersion, opList, opInfo, opStatus, opTable, opDeps, opVersions:
		return false
	}
	return true
}
