package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/thinsnap/thinsnap/internal/config"
)

// loaded is thinsnap's configuration. Even after an error, every key has a value.
type loaded struct {
	config  config.Config
	missing bool // the file does not exist, and is optional
	err     error
}

func (m *machine) load() loaded {
	l := loaded{config: config.Default()}
	text, err := os.ReadFile(m.File)
	switch {
	case errors.Is(err, fs.ErrNotExist) && m.Optional:
		l.missing = true
	case err != nil:
		l.err = err
	default:
		var read config.Config
		if read, l.err = config.Parse(text); read.Version == config.Version {
			l.config = read
		}
	}
	if m.AdminAddress != "" {
		l.config.AdminAddress = m.AdminAddress
	}
	return l
}

func lookAtConfiguration(_ context.Context, m *machine) finding {
	l := m.loaded()
	var invalid *config.Error
	switch {
	case l.missing:
		return ok("%s does not exist; the defaults apply", m.File)
	case errors.As(l.err, &invalid):
		lines := []string{m.File + ": " + count(len(invalid.Problems), "error")}
		for _, p := range invalid.Problems {
			lines = append(lines, p.Error())
		}
		return problem(strings.Join(lines, "\n"), "sudoedit "+quote(m.File), "thinsnap config check "+quote(m.File))
	case l.err != nil:
		return problem("read the configuration: "+l.err.Error(), "ls -l "+quote(m.File))
	}
	return ok("%s: pool %s in mode %q, root %s", m.File, l.config.Pool.Name, l.config.Pool.Mode, l.config.Root)
}

// count returns, for example, "1 error" or "2 errors".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// quote returns a word for a shell's command line.
func quote(word string) string {
	plain := func(r rune) bool {
		return r < 128 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("-_./:+@=,%", r))
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
