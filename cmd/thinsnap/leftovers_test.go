package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLeftovers(t *testing.T) {
	address := fakeDaemon(t)
	got := try(t, false, backend{}, "--admin-address", address, "leftovers")
	require.Equal(t, "ID  MAPPED  SIZE  FOUND\n12   30MiB  9GiB  2026-01-02 03:04:05\n", got.out)
	require.Empty(t, got.err)
	got = try(t, false, backend{}, "--admin-address", address, "leftovers", "--json")
	require.JSONEq(t, `{"leftovers": [
		{"device_id": 12, "mapped_bytes": 31457280, "size_bytes": 9663676416, "found_at": "2026-01-02T03:04:05Z"}
	]}`, got.out)
	got = try(t, false, backend{}, "--admin-address", address, "leftovers", "remove", "12")
	require.Empty(t, got.out+got.err)
	for args, want := range map[string][]string{
		"leftover volume 13: not found":         {"remove", "12", "13"},
		`"x" is not the id of a leftover`:       {"remove", "12", "x"},
		"missing argument":                      {"remove"},
		`unknown command "rm"`:                  {"rm", "12"},
		`"4294967296" is not the id of a lefto`: {"remove", "4294967296"},
	} {
		got := try(t, false, backend{}, append([]string{"--admin-address", address, "leftovers"}, want...)...)
		require.Contains(t, got.err, args)
	}
}
