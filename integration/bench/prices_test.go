package bench

import (
	"os"
	"runtime"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// benchPrices measures the kernel's most frequent services, to compare the CPU times of two kernels: a system call of a
// user-mode kernel takes a hundred times as long.
func benchPrices(s *suite) {
	for range 5 {
		s.price("a system call", 5000, func(n int) {
			for range n {
				_, _, _ = unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
			}
		})
		s.price("time.Now", 5000, func(n int) {
			for range n {
				_ = time.Now()
			}
		})
		s.price("a page of memory, touched", 2000, func(n int) {
			memory, err := unix.Mmap(-1, 0, n*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			require.NoError(s.b, err)
			for i := range n {
				memory[i*os.Getpagesize()] = 1
			}
			require.NoError(s.b, unix.Munmap(memory))
		})
		s.price("two threads, there and back by pipes", 1000, s.pingPong)
	}
}

// price adds the time of one of n repetitions.
func (s *suite) price(row string, n int, run func(n int)) {
	start := time.Now()
	run(n)
	s.report.Add(s.group, row, "µs", Floor, float64(time.Since(start))/float64(n)/float64(time.Microsecond))
}

// pingPong has two threads wake each other n times: four system calls and two context switches each.
func (s *suite) pingPong(n int) {
	var there, back [2]int
	for _, p := range [][]int{there[:], back[:]} {
		require.NoError(s.b, unix.Pipe2(p, unix.O_CLOEXEC))
		defer unix.Close(p[0])
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for b := make([]byte, 1); ; {
			if got, err := unix.Read(there[0], b); got != 1 || err != nil {
				return
			}
			if _, err := unix.Write(back[1], b); err != nil {
				return
			}
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b := make([]byte, 1)
	for range n {
		_, err := unix.Write(there[1], b)
		require.NoError(s.b, err)
		_, err = unix.Read(back[0], b)
		require.NoError(s.b, err)
	}
	require.NoError(s.b, unix.Close(there[1]))
	<-ended
	require.NoError(s.b, unix.Close(back[1]))
}
