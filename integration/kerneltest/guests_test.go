package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLongPackagesExist(t *testing.T) {
	packages, err := findPackages(t.Context(), []string{modulePath + "..."}, "")
	require.NoError(t, err)
	slices.SortStableFunc(packages, longestFirst)
	var first []string
	for _, p := range packages[:len(long())] {
		first = append(first, strings.TrimPrefix(p.ImportPath, modulePath))
	}
	require.Equal(t, long(), first)
}

// TestInTurn: two packages are tested at a time, each once and in its turn, also after a failure.
func TestInTurn(t *testing.T) {
	packages := []testPackage{{ImportPath: "a"}, {ImportPath: "b"}, {ImportPath: "c"}}
	var mu sync.Mutex
	var began []string
	both := make(chan struct{})
	places := map[string]*place{}
	err := inTurn(t.Context(), packages, 2, func(int) *place { return &place{} }, func(at *place, p testPackage) error {
		mu.Lock()
		began = append(began, p.ImportPath)
		places[p.ImportPath] = at
		if len(began) == 2 {
			close(both)
		}
		mu.Unlock()
		<-both
		if p.ImportPath == "b" {
			return errors.New("failed")
		}
		return nil
	})
	require.EqualError(t, err, "b: failed")
	require.ElementsMatch(t, []string{"a", "b"}, began[:2])
	require.Equal(t, "c", began[2])
	require.Len(t, began, 3)
	require.NotSame(t, places["a"], places["b"])
}

func TestInTurnEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var began int
	err := inTurn(ctx, make([]testPackage, 3), 1, func(int) *place { return &place{} }, func(*place, testPackage) error {
		began++
		cancel()
		return errors.New("the guest has ended")
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, began)
}
