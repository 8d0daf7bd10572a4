package pool

import (
	"errors"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper"
)

// VolumesInUse returns the device names of all thinsnap volumes, of any pool, that are mounted or
// open. It needs no pool and no daemon.
func VolumesInUse(control *devmapper.Control) ([]string, error) {
	devices, err := control.List()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, listed := range devices {
		dev, err := control.Info(listed.Name)
		if errors.Is(err, devmapper.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		isVolume := strings.HasPrefix(dev.UUID, uuidStart) && !strings.HasSuffix(dev.UUID, "-pool")
		if isVolume && dev.OpenCount > 0 {
			names = append(names, dev.Name)
		}
	}
	return names, nil
}
