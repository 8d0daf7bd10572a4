package main

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

func TestResolve(t *testing.T) {
	client := admin.NewClient(fakeDaemon(t))
	for name, want := range map[string]string{
		containerKey:                     containerKey,
		"box":                            containerKey,
		"/3/":                            containerKey,
		"web":                            containerKey, // a container's name,
		"c0ff":                           containerKey, // id,
		"shop-1":                         containerKey,
		"prod/shop-1":                    containerKey, // and pod
		"thinsnap-snap-3":                containerKey,
		"/dev/mapper/thinsnap-snap-2":    layer2Key, // not the View of it
		"docker.io/library/python:3":     layer2Key,
		"docker.io/library/debian:12":    layerKey,
		"default/1/sha256:111111111111…": layerKey,
		"default/2/…22":                  layer2Key,
	} {
		key, err := resolve(t.Context(), client, name)
		require.NoError(t, err, name)
		require.Equal(t, want, key, name)
	}
	for name, want := range map[string]string{
		"": "the name of a snapshot is empty",
		"sha256": "sha256 could be " + layerKey + " (image docker.io/library/debian:12 and 1 other), " + layer2Key +
			" (image docker.io/library/python:3): give one of these keys",
		"c0":               "no snapshot, container or image is called c0; `thinsnap ls` lists the snapshots: not found",
		"thinsnap-snap-99": "no snapshot, container or image is called thinsnap-snap-99; `thinsnap ls` lists the snapshots: not found",
		"/prod":            "no snapshot, container or image is called /prod; `thinsnap ls` lists the snapshots: not found",
	} {
		_, err := resolve(t.Context(), client, name)
		require.EqualError(t, err, want)
	}
	require.Equal(t, "1, 2, 3, 4, 5, 2 more", candidates(strings.Split("1234567", ""), nil))
}

// podReports has pods: one with a container, one with two, of which one has the pod's name. Each has a sandbox.
type podReports struct{ fakeReports }

func (podReports) Owners(context.Context) (admin.Owners, error) {
	owner := func(key, id, name, pod string) admin.Owner {
		return admin.Owner{Key: key, Container: &admin.Container{
			ID: id, Name: name, Pod: pod, PodNamespace: "prod", Sandbox: name == "",
		}}
	}
	return admin.Owners{Owners: []admin.Owner{
		owner("k8s.io/1/box-1", "aaaa1111", "", "shop"), owner("k8s.io/2/web", "aaaa2222", "web", "shop"),
		owner("k8s.io/3/box-2", "bbbb1111", "", "db"), owner("k8s.io/4/db", "bbbb2222", "db", "db"),
		owner("k8s.io/5/backup", "bbbb3333", "backup", "db"),
	}}, nil
}

// TestResolvePod: a pod's name is that of its container, not of its sandbox.
func TestResolvePod(t *testing.T) {
	client := admin.NewClient(fakeDaemonOf(t, podReports{}))
	for name, want := range map[string]string{
		"shop":      "k8s.io/2/web",
		"prod/shop": "k8s.io/2/web",
		"db":        "k8s.io/4/db",
		"aaaa1111":  "k8s.io/1/box-1",
		"aaaa1":     "k8s.io/1/box-1",
	} {
		key, err := resolve(t.Context(), client, name)
		require.NoError(t, err, name)
		require.Equal(t, want, key, name)
	}
	_, err := resolve(t.Context(), client, "prod/db")
	require.EqualError(t, err, "prod/db could be k8s.io/4/db (pod prod/db: db), k8s.io/5/backup (pod prod/db: backup): "+
		"give one of these keys")
	sandbox := ownerRows(&admin.Owner{Container: &admin.Container{ID: "aaaa1111", Pod: "shop", PodNamespace: "prod", Sandbox: true}})
	require.Contains(t, sandbox, row{"Pod", "prod/shop (its sandbox)"})
}

func TestTableFits(t *testing.T) {
	table := func() [][]string {
		return [][]string{
			{"KEY", "SIZE", "BELONGS TO"},
			{strings.Repeat("k", 40), "10GiB", strings.Repeat("o", 30)},
			{"short", "1B", palette(true).green(strings.Repeat("o", 25))},
		}
	}
	require.Equal(t, table(), fit(table(), 0))
	require.Equal(t, table(), fit(table(), 79))
	for _, columns := range []int{78, 60, 41} {
		for _, line := range align(false, fit(table(), columns)) {
			require.LessOrEqual(t, width(line), columns)
		}
	}
	require.Equal(t, []string{
		"KEY                              SIZE  BELONGS TO",
		strings.Repeat("k", 29) + "…  10GiB  " + strings.Repeat("o", 30),
	}, align(false, fit(table(), 69)[:2]))
	require.Equal(t, 41, width(align(false, fit(table(), 10))[1]), "names keep 16 characters")
}
