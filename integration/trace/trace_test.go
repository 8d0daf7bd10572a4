package trace

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCount(t *testing.T) {
	file := filepath.Join(t.TempDir(), "trace")
	require.NoError(t, os.WriteFile(file, []byte(`101  execve("/usr/sbin/dmsetup", ["dmsetup", "info"], 0xc0 /* 9 vars */) = 0
102   ioctl(3</dev/mapper/control>, DM_DEV_CREATE, {version=[4, 0, 0]}) = 0
102   ioctl(3</dev/mapper/control>, _IOC(_IOC_READ|_IOC_WRITE, 0xfd, 0x3, 0x138), 0xc0) = 0
102   ioctl(8</dev/mapper/control>, DM_DEV_ARM_POLL, {version=[4, 0, 0]}) = 0
102   ioctl(8</dev/mapper/control>, _IOC(_IOC_READ|_IOC_WRITE, 0xfd, 0x10, 0x138), 0xc0) = 0
102   ioctl(7</dev/vda>, BLKGETSIZE64, [1073741824]) = 0
103   fdatasync(9</data/metadata.db> <unfinished ...>
101   fdatasync(10</data/meta.db>) = 0
103   <... fdatasync resumed>) = 0
103   fdatasync(9</data/metadata.db>) = 0
103   fsync(11</dev/dm-3>) = 0
103   read(12<socket:[42]>, "", 32768) = 17
103   write(2</tmp/log>, "time=", 5) = 5
103   statfs("/root/pool/data", {f_type=EXT2_SUPER_MAGIC}) = 0
103   mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x96dc4000
103   --- SIGURG {si_signo=SIGURG, si_code=SI_TKILL, si_pid=101, si_uid=0} ---
104   execve("/nonexistent", ["x"], 0xc0 /* 9 vars */) = -1 ENOENT (No such file or directory)
`), 0o600))
	require.Equal(t, Cost{Programs: 2, Syncs: 3, Transactions: 1, Ioctls: 4, Looks: 2, Calls: 11}, count(t, file, []string{"/data/meta.db"}))
	require.Equal(t, 4, count(t, file, nil).Syncs)
}

func TestParseCalls(t *testing.T) {
	require.Equal(t, map[string]int{"execve": 1, "openat": 34}, parseCalls(`syscall              calls
---------------- ---------
execve                   1
openat                  34
---------------- ---------
total                   35
`))
	require.Empty(t, parseCalls(""))
}
