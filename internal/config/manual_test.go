package config

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/roff"
)

// TestManualReference compares the manual page with the descriptions in the code.
func TestManualReference(t *testing.T) {
	const file = "../../docs/man/thinsnap-config.toml.5"
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(manual()), 0o644))
	}
	written, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, manual(), string(written), "go generate ./internal/config rewrites the file")
}

// manual returns the text of thinsnap-config.toml(5).
func manual() string {
	p := roff.New("thinsnap-config.toml", 5, "the configuration of thinsnap")
	p.Section("DESCRIPTION")
	p.Paragraph(roff.Bold("thinsnap") + "(1) reads " + roff.Italic(DefaultPath) + ", or the file that " + roff.Bold("--config") +
		" names. Its format is TOML. The file and every key are optional. An error for an unknown key or an invalid value names " +
		"the line or the key.")
	p.Paragraph(roff.Bold("thinsnap config default") + " prints a file with every key, its default and a comment; " +
		roff.Bold("thinsnap config check") + " checks a file. A change takes effect when the daemon is restarted.")
	p.Paragraph(roff.Escape(`Sizes are strings with a binary unit, such as "64KiB" or "10GiB", or plain numbers of bytes. ` +
		`Shares are strings with a percent sign, such as "80%", or whole numbers (80).`))
	for _, s := range sections() {
		if s.name == "" {
			p.Section("TOP LEVEL")
		} else {
			p.Section(s.header())
			p.Paragraph(roff.Escape(s.doc))
		}
		for _, k := range s.keys {
			p.Item(roff.Bold(leaf(k.name))+" = "+roff.Escape(shownValue(k.name)),
				roff.Escape(k.doc+" Must be "+k.allowed+"."))
		}
	}
	p.Section("EXAMPLE")
	p.Paragraph("A larger pool with xfs file systems and a larger reserve:")
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
