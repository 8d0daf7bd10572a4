package config

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/roff"
)

// TestManualReference holds the manual page against the descriptions in the code.
func TestManualReference(t *testing.T) {
	const file = "../../docs/man/thinsnap-config.toml.5"
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(manual()), 0o644))
	}
	written, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, manual(), string(written), "go generate ./internal/config writes the file anew")
}

// manual is the text of thinsnap-config.toml(5).
func manual() string {
	p := roff.New("thinsnap-config.toml", 5, "the configuration of thinsnap")
	p.Section("DESCRIPTION")
	p.Paragraph(roff.Bold("thinsnap") + "(1) reads " + roff.Italic(DefaultPath) + ", or the file that " + roff.Bold("--config") +
		" names. It is in TOML. Every key may be left out, and so may the whole file. A key that does not exist, or a value that is " +
		"not allowed, is an error that names the line or the key; nothing is ignored.")
	p.Paragraph(roff.Bold("thinsnap config default") + " prints a file with every key, its default and a comment; " +
		roff.Bold("thinsnap config check") + " says what is wrong with one. A change takes effect when the daemon is started again.")
	p.Paragraph(roff.Escape(`Sizes are strings with a binary unit, such as "64KiB" or "10GiB", or plain numbers of bytes.`))
	for _, s := range sections() {
		if s.name == "" {
			p.Section("ABOVE THE FIRST TABLE")
		} else {
			p.Section("[" + s.name + "]")
			p.Paragraph(roff.Escape(s.doc))
		}
		for _, k := range s.keys {
			p.Item(roff.Bold(leaf(k.name))+" = "+roff.Escape(defaultOf(k.name)),
				roff.Escape(k.doc+" Must be "+k.allowed+"."))
		}
	}
	p.Section("EXAMPLE")
	p.Paragraph("A larger pool of xfs file systems, with more kept free:")
	p.Literal(manualExample)
	p.Section("SEE ALSO")
	p.Paragraph(roff.Bold("thinsnap") + "(1)")
	return p.String()
}

const manualExample = `version = 1
[pool]
min_free_space = "15%"
[pool.loop]
data_size = "500GiB"
[filesystem]
type = "xfs"
base_size = "20GiB"
`

func TestManualExample(t *testing.T) {
	cfg, err := Parse([]byte(manualExample))
	require.NoError(t, err)
	require.Equal(t, XFS, cfg.Filesystem.Type)
	require.Equal(t, 500*gib, cfg.Pool.Loop.DataSize)
}
