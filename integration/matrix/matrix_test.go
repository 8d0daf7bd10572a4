package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const report = `{"Action":"attr","Time":"2026-11-30T23:30:00+01:00","Package":"p","Test":"TestA/old","Key":"support","Value":"containerd\t1.6.20\t6.1.0-48-amd64"}
{"Action":"attr","Package":"p","Test":"TestA/old","Key":"other","Value":"x"}
{"Action":"pass","Package":"p","Test":"TestA/old/pull/one"}
{"Action":"pass","Package":"p","Test":"TestA/old/pull_it"}
{"Action":"skip","Package":"p","Test":"TestA/old/transfer"}
{"Action":"attr","Time":"2026-11-30T10:00:00Z","Package":"p","Test":"TestA/old/compose","Key":"support","Value":"compose\t2.1.2\t6.1.0-48-amd64"}
{"Action":"pass","Package":"p","Test":"TestA/old/compose"}
{"Action":"pass","Package":"p","Test":"TestA/old"}
{"Action":"attr","Time":"2026-11-30T10:00:00Z","Package":"p","Test":"TestB","Key":"support","Value":"Docker\t28.5.2\t6.1.0-48-amd64"}
{"Action":"pass","Package":"p","Test":"TestB/run"}
{"Action":"fail","Package":"p","Test":"TestB/cp"}
{"Action":"fail","Package":"p","Test":"TestB"}
{"Action":"attr","Time":"2026-11-30T10:00:00Z","Package":"p","Test":"TestC","Key":"support","Value":"QEMU\t7.2\t6.1.0-48-amd64"}
`

func TestCells(t *testing.T) {
	cells, err := cellsOf(strings.NewReader(report))
	require.NoError(t, err)
	require.Equal(t, []cell{
		{"containerd", "1.6.20", "6.1.0-48-amd64", "2026-11-30", "TestA", []string{"pull it", "compose"}, nil},
		{"compose", "2.1.2", "6.1.0-48-amd64", "2026-11-30", "TestA", nil, nil},
		{"Docker", "28.5.2", "6.1.0-48-amd64", "2026-11-30", "TestB", []string{"run"}, []string{"cp"}},
		{"QEMU", "7.2", "6.1.0-48-amd64", "2026-11-30", "TestC", nil, []string{"did not end"}},
	}, cells)
	require.Equal(t, "Docker 28.5.2, Linux 6.1.0-48-amd64: FAILED: cp", cells[2].String())
	_, err = cellsOf(strings.NewReader(`{"Action":"attr","Test":"TestA","Key":"support","Value":"one\ttwo"}`))
	require.ErrorContains(t, err, "has 2 parts")
	_, err = cellsOf(strings.NewReader(report + `{"Action":"skip","Package":"p","Test":"TestD/new"}`))
	require.EqualError(t, err, "skipped, so a cell may be missing: TestD/new")
	cells, err = cellsOf(strings.NewReader(report + `{"Action":"skip","Package":"p","Test":"TestC"}`))
	require.NoError(t, err)
	require.Equal(t, []string{"was skipped"}, cells[3].Failed)
	_, err = cellsOf(strings.NewReader(`{"Action":`))
	require.Error(t, err)
}

// TestMerge: a run replaces only cells of the same series, and the newest version comes first.
func TestMerge(t *testing.T) {
	c := func(client, version, kernel string) cell {
		return cell{Client: client, Version: version, Kernel: kernel}
	}
	old := []cell{c("b", "1.7.35", "6.1.0-48-amd64"), c("b", "1.6.20", "6.1.0-48-amd64"), c("a", "2.10.0", "6.12.1")}
	require.Equal(t, []cell{
		c("a", "2.10.0", "6.12.1"), c("a", "2.9.1", "6.12.1"),
		c("b", "1.7.36", "6.1.0-50-amd64"), c("b", "1.7.35", "6.12.3"), c("b", "1.6.20", "6.1.0-48-amd64"),
	}, merge(old, []cell{c("b", "1.7.36", "6.1.0-50-amd64"), c("b", "1.7.35", "6.12.3"), c("a", "2.9.1", "6.12.1")}))
	require.Len(t, old, 3)
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "support.md")
	file := filepath.Join(dir, "report.json")
	require.NoError(t, os.WriteFile(file, []byte(report), 0o600))
	_, err := run(dir, []string{file})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(page, []byte("before\n"), 0o600))
	_, err = run(dir, []string{file})
	require.ErrorIs(t, err, errNoTable)
	require.NoFileExists(t, filepath.Join(dir, "support.json"))

	require.NoError(t, os.WriteFile(page, []byte("before\n"+tableHead+"| old |\n\nafter\n"), 0o600))
	for range 2 {
		failed, err := run(dir, []string{file})
		require.NoError(t, err)
		require.True(t, failed)
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		require.Equal(t, "before\n"+tableHead+
			"| compose | 2.1.2 | 6.1.0-48-amd64 | passed | 2026-11-30 | `TestA` |\n"+
			"| containerd | 1.6.20 | 6.1.0-48-amd64 | passed | 2026-11-30 | `TestA`: pull it, compose |\n"+
			"| Docker | 28.5.2 | 6.1.0-48-amd64 | **failed**: cp | 2026-11-30 | `TestB`: run |\n"+
			"| QEMU | 7.2 | 6.1.0-48-amd64 | **failed**: did not end | 2026-11-30 | `TestC` |\n\nafter\n", string(text))
	}
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = run(dir, []string{file})
	require.ErrorContains(t, err, "no client was tested")
}

// TestSupportPage: the table of docs/support.md matches docs/support.json, and no cell failed.
func TestSupportPage(t *testing.T) {
	cells, err := readRecord("../../docs")
	require.NoError(t, err)
	require.NotEmpty(t, cells)
	for _, c := range cells {
		require.Empty(t, c.Failed, c)
	}
	page, err := os.ReadFile("../../docs/support.md")
	require.NoError(t, err)
	want, err := withTable(page, cells)
	require.NoError(t, err)
	require.Equal(t, string(want), string(page), "run `make matrix`")
}
