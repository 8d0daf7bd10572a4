// Command demo starts a registry, thinsnap with a new pool, and containerd in one directory, runs show.sh, and removes
// everything.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/thinsnap/thinsnap/integration/harness"
)

// name is the name of the pool and of containerd's namespace.
const name = "thinsnap-demo"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo IMAGES, the directory that integration/image/build.sh prints")
		os.Exit(2)
	}
	signal.Notify(make(chan os.Signal, 1), os.Interrupt) // an interrupt ends only show.sh; then run stops the rest
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(images string) (err error) {
	tools, err := harness.FindTools(".")
	if err != nil {
		return err
	}
	tools.Images = filepath.Join(images, "registry")
	image, err := os.ReadFile(filepath.Join(images, "name"))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(cmp.Or(os.Getenv("TMPDIR"), "/var/tmp"), name+".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	at := func(file string) string { return filepath.Join(dir, file) }

	fmt.Println("\n== A registry, thinsnap with a new pool, and containerd")
	registry, address, err := harness.StartRegistry(tools, dir)
	if registry != nil {
		defer registry.Kill()
	}
	if err != nil {
		return err
	}
	thinsnap, err := harness.NewThinsnap(harness.Options{
		PoolName: name, Dir: at("thinsnap"), Sockets: dir, DataSize: "20GiB", BaseSize: "10GiB", MaxSize: "15GiB",
		LogLevel: "info", Program: tools.Thinsnap,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, thinsnap.Destroy()) }()
	err = thinsnap.Start()
	defer func() { err = end(thinsnap.Process, err) }()
	if err != nil {
		return err
	}
	containerd, err := harness.NewContainerd(tools, tools.Releases[0], harness.Setup{
		Dir: at("clients"), Root: at("containerd"), State: at("state"), Namespace: name,
		Proxies: []harness.Proxy{thinsnap.Proxy()},
	})
	if err != nil {
		return err
	}
	err = containerd.Start()
	defer func() { err = end(containerd.Process, err) }()
	if err != nil {
		return err
	}
	show := exec.Command("integration/demo/show.sh", address+"/"+strings.TrimSpace(string(image)))
	show.Env = append(containerd.Env(), "CONTAINERD_SNAPSHOTTER=thinsnap",
		"THINSNAP_PROGRAM="+tools.Thinsnap, "THINSNAP_CONFIG="+thinsnap.Config())
	show.Stdout, show.Stderr = os.Stdout, os.Stderr
	err = errors.Join(show.Run(), containerd.RemoveAll())
	_ = os.Remove("/run/containerd/runc/" + name) // runc leaves it empty
	return err
}

// end stops a program, if it runs, and shows its log after an error.
func end(p *harness.Process, err error) error {
	if p == nil {
		return err
	}
	err = errors.Join(err, p.Stop())
	if err != nil {
		fmt.Fprintln(os.Stderr, p.Log())
	}
	return err
}
