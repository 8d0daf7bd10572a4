package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/thinsnap/thinsnap/integration/vm"
)

// disks is the number of empty disks of the tests, and diskSize their apparent size.
const (
	disks    = 2
	diskSize = 20 << 30
)

// runner runs programs: the host or a guest.
type runner interface {
	Run(ctx context.Context, c vm.Command) error
}

// place is the host or the current guest.
type place struct {
	config vm.Config
	disks  string // prefix of the disk images' names

	boots   int
	direct  *vm.Direct
	machine *vm.Machine
}

// get returns a working runner: a new guest if none runs.
func (p *place) get(ctx context.Context) (runner, error) {
	if p.direct != nil {
		return p.direct, nil
	}
	if p.machine != nil {
		select {
		case <-p.machine.Done():
		default:
			return p.machine, nil
		}
	}
	p.boots++
	config := p.config
	for i := range disks {
		config.Disks = append(config.Disks, vm.Disk{Path: fmt.Sprintf("%s-%d-%d", p.disks, p.boots, i), Size: diskSize})
	}
	direct, _, err := vm.Prefer()
	if err != nil {
		return nil, err
	}
	if direct {
		p.direct, err = vm.OpenDirect(config.Disks)
		return p.direct, err
	}
	p.machine, err = vm.Boot(ctx, config)
	return p.machine, err
}

// goEnv returns variables for the tests in the current place.
func (p *place) goEnv() []string {
	if p.machine == nil {
		return nil
	}
	return p.machine.GoEnv()
}

// blame adds the guest's console to an error of the guest.
func (p *place) blame(err error) error {
	if p.machine != nil && errors.Is(err, vm.ErrGuestGone) {
		return fmt.Errorf("%w; the guest's console:\n%s", err, p.machine.Console())
	}
	return err
}

func (p *place) abandon() {
	if p.machine != nil {
		p.machine.Kill()
		p.machine = nil
	}
}

func (p *place) close() {
	p.abandon()
	if p.direct != nil {
		if err := p.direct.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "kerneltest:", err)
		}
	}
}
