// Package dmtest helps tests that need a kernel with device-mapper.
//
// A test that needs one calls [RequireKernel] first, and is in a file named *_kernel_test.go, by
// which `make kernel-test` finds it. Then it calls [NoLeaks], which checks that it leaves nothing
// behind.
package dmtest
