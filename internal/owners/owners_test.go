package owners

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOwners(t *testing.T) {
	all := []Snapshot{
		{"default/1/base", ""},
		{"default/2/mid", "default/1/base"},
		{"default/3/top", "default/2/mid"},
		{"default/4/other", "default/1/base"},
		{"default/5/box", "default/3/top"},
		{"default/9/box", "default/3/top"},
		{"default/10/extract-1 sha256:x", "default/1/base"},
		{"moby/1/base", ""},
		{"moby/2/abc-init", "moby/1/base"},
		{"moby/3/abc", "moby/2/abc-init"},
		{"odd", ""},
	}
	box := newContainer("box", "debian:12", map[string]string{
		labelContainer: "web", labelPod: "shop", labelPodNamespace: "prod", labelKind: "container",
	})
	spaces := map[string]namespace{
		"default": {
			images: []image{
				{"debian:12", "d1", []string{"top"}},
				{"sha256:c1", "d1", []string{"top"}},
				{"debian@sha256:d1", "d1", []string{"top"}},
				{"small:1", "d2", []string{"other"}},
				{"only@sha256:d3", "d3", []string{"mid", "missing"}},
			},
			containers: map[string]Container{"box": box, "gone": {}},
		},
		"moby":  {containers: map[string]Container{"abc": newContainer("abc", "", nil)}},
		"empty": {images: []image{{"x", "d", []string{"base"}}}},
	}
	abc := &Container{ID: "abc"}
	require.Equal(t, map[string]Owner{
		"default/1/base":  {Namespace: "default", Images: []string{"debian:12", "only@sha256:d3", "small:1"}},
		"default/2/mid":   {Namespace: "default", Images: []string{"debian:12", "only@sha256:d3"}},
		"default/3/top":   {Namespace: "default", Images: []string{"debian:12"}},
		"default/4/other": {Namespace: "default", Images: []string{"small:1"}},
		"default/9/box": {Namespace: "default", Container: &Container{
			ID: "box", Name: "web", Image: "debian:12", Pod: "shop", PodNamespace: "prod",
		}},
		"moby/2/abc-init": {Namespace: "moby", Container: abc},
		"moby/3/abc":      {Namespace: "moby", Container: abc},
	}, assign(spaces, all))
}

func TestTops(t *testing.T) {
	b := blobs{
		"index":    {children: []string{"manifest", "attestation", "index"}},
		"manifest": {children: []string{"config"}},
		"config":   {top: "chain"},
		"other":    {top: "else"},
	}
	require.Equal(t, []string{"chain"}, b.tops("index"))
	require.Empty(t, b.tops("absent"))
}
