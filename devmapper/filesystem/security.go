package filesystem

import (
	"regexp"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// securityOption matches an SELinux option in a comma-separated list (mount(8)). A value with a
// comma is quoted.
var securityOption = regexp.MustCompile(`(?:^|,)((?:fs|def|root)?context=(?:"[^"]*"|[^,]*))`)

// securityOptions returns the SELinux options with which dev, which is already mounted, can be
// mounted once more: the kernel accepts only those of the first mount. They come from a mount in
// this namespace, or else from options.
func securityOptions(dev string, options []string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		is := unix.Mkdev(uint32(m.Major), uint32(m.Minor)) == st.Rdev
		return !is, is
	})
	if err != nil {
		return nil, err
	}
	if len(mounts) == 0 {
		return findSecurityOptions(strings.Join(options, ",")), nil
	}
	return findSecurityOptions(mounts[0].VFSOptions), nil
}

func findSecurityOptions(list string) (found []string) {
	for _, match := range securityOption.FindAllStringSubmatch(list, -1) {
		found = append(found, match[1])
	}
	return found
}

// withSecurity replaces the SELinux options among options.
func withSecurity(options, security []string) []string {
	others := slices.DeleteFunc(slices.Clone(options), func(option string) bool {
		return len(findSecurityOptions(option)) > 0
	})
	return append(others, security...)
}

// setSecurity sets SELinux options in a configuration of fsopen(2), where values have no quotes.
func setSecurity(fs int, options []string) error {
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		if err := unix.FsconfigSetString(fs, key, strings.Trim(value, `"`)); err != nil {
			return err
		}
	}
	return nil
}
