package setup

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// masked takes the place of a secret value in what is printed.
const masked = "***"

// secretWords are in the names of keys whose values are secret. secretTables have only such keys: the headers that
// containerd sends to a registry, and the environment of a program.
var (
	secretWords  = regexp.MustCompile(`(?i)` + anySecret)
	noSecret     = regexp.MustCompile(`(?i)(file|path|dir)s?$`)
	secretTables = regexp.MustCompile(`(?i)^(headers?|env|environment)$`)
)

const (
	anySecret = `(auth|bearer|cookie|credential|passphrase|passwd|password|private_?key|api_?key|secret|token)`
	// aValue is a string in quotes, which a log may have escaped, or a list on one line or more.
	aValue = `(\\"[^\n]*?\\"|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\[(?:[^\]"']|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')*\])`
)

var (
	// assigned finds such a key with its value in TOML, in JSON, in a comment and in a message.
	assigned = regexp.MustCompile(`(?i)[\w.-]*` + anySecret + `[\w.-]*(?:\\?["'])?\s*[=:]\s*` + aValue)
	// userOf finds the user and the password in a URL.
	userOf = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://([^\s/"'@]+)@`)
)

// Masked returns a text of configuration, or a message about one, without the values of keys that name secrets, of
// headers and environments, and without the users in URLs: each is ***.
func Masked(text []byte) []byte {
	secrets := secretsIn(text)
	if len(secrets) == 0 {
		return text
	}
	return []byte(replaced(string(text), 0, len(text), secrets))
}

// secretsIn returns the edits that mask secrets, sorted, without those within others.
func secretsIn(text []byte) []edit {
	var found []edit
	for _, m := range assigned.FindAllSubmatchIndex(text, -1) {
		key, _, _ := bytes.Cut(text[m[0]:m[4]], []byte("="))
		if name := strings.Trim(string(key), "\"'\\: \t\n"); !noSecret.MatchString(name) {
			found = append(found, edit{m[4], m[5], `"` + masked + `"`})
		}
	}
	for _, m := range userOf.FindAllSubmatchIndex(text, -1) {
		found = append(found, edit{m[2], m[3], masked})
	}
	// A template of TOML is TOML without its actions.
	e := editor{file: file{text: bytes.ReplaceAll(text, []byte("{{"), []byte("##"))}}
	e.visit(func(s setting) {
		if s.isSecret() {
			found = append(found, edit{s.after, s.end, ` = "` + masked + `"`})
		}
	})
	slices.SortFunc(found, func(a, b edit) int {
		if a.at != b.at {
			return a.at - b.at
		}
		return b.end - a.end
	})
	var outer []edit
	for _, x := range found {
		if len(outer) > 0 && x.at < outer[len(outer)-1].end {
			continue
		}
		outer = append(outer, x)
	}
	return outer
}

// isSecret returns true if the value is not to be printed.
func (s setting) isSecret() bool {
	if s.value.Kind == unstable.Bool || s.value.Kind == unstable.InlineTable {
		return false
	}
	last := len(s.key) - 1
	return secretWords.MatchString(s.key[last]) && !noSecret.MatchString(s.key[last]) ||
		slices.ContainsFunc(s.key, secretTables.MatchString)
}

// secretLines returns the indexes of the lines of a text that have secrets.
func secretLines(text []byte) map[int]bool {
	found := make(map[int]bool)
	for _, x := range secretsIn(text) {
		first := bytes.Count(text[:x.at], []byte("\n"))
		for i := range 1 + bytes.Count(text[x.at:x.end], []byte("\n")) {
			found[first+i] = true
		}
	}
	return found
}
