package filesystem

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSecurityOptions(t *testing.T) {
	const quoted = `context="system_u:object_r:container_file_t:s0:c1,c2"`
	for list, want := range map[string][]string{
		"":                                   nil,
		"rw,seclabel,errors=remount-ro":      nil,
		"rw,nocontext=1,somecontext=2":       nil,
		"rw,context=u:o:t:s0,errors=panic":   {"context=u:o:t:s0"},
		"rw," + quoted + ",nouuid":           {quoted},
		"fscontext=a:b:c:s0,rootcontext=d:e": {"fscontext=a:b:c:s0", "rootcontext=d:e"},
		"defcontext=a:b:c:s0":                {"defcontext=a:b:c:s0"},
	} {
		require.Equal(t, want, findSecurityOptions(list), list)
	}
	require.Equal(t, []string{"rw", "nodev", quoted},
		withSecurity([]string{"rw", "context=u:o:t:s0", "nodev"}, []string{quoted}))
	require.Equal(t, []string{"rw"}, withSecurity([]string{"rw", "context=u:o:t:s0"}, nil))
}
