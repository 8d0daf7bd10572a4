package setup

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// masked replaces a secret value in the output.
const masked = "***"

// secretWords occur in the names of keys with secret values. All keys of secretTables are secret:
// the headers that containerd sends to a registry, and the environment of a program.
var (
	secretWords  = regexp.MustCompile(`(?i)` + anySecret)
	noSecret     = regexp.MustCompile(`(?i)(file|path|dir)s?$`)
	secretTables = regexp.MustCompile(`(?i)^(headers?|env|environment)$`)
)

const (
	anySecret = `(auth|bearer|cookie|credential|passphrase|passwd|password|private_?key|api_?key|secret|token)`
	// aValue is a quoted string, which a log may have escaped, or a list on one or more lines.
	aValue = `(\\"[^\n]*?\\"|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\[(?:[^\]"']|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')*\])`
)

var (
	// assigned matches a key with a secret word and its value: in TOML, in JSON, in a comment or in
	// a message.
	assigned = regexp.MustCompile(`(?i)[\w.-]*` + anySecret + `[\w.-]*(?:\\?["'])?\s*[=:]\s*` + aValue)
	// userOf matches the user and the password in a URL.
	userOf = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://([^\s/"'@]+)@`)
)

// Masked returns the text of a configuration, or a message about one, in which "***" replaces
// secrets: the values of secret keys, headers and environments, and the users in URLs.
func Masked(text []byte) []byte {
	secrets := secretsIn(text)
	if len(secrets) == 0 {
		return text
	}
	return []byte(applyEdits(string(text), 0, len(text), secrets))
}

// secretsIn returns the edits that mask secrets, sorted, without edits inside other edits.
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
	// A TOML template without its actions is TOML.
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

func (s setting) isSecret() bool {
	if s.value.Kind == unstable.Bool || s.value.Kind == unstable.InlineTable {
		return false
	}
	last := len(s.key) - 1
	return secretWords.MatchString(s.key[last]) && !noSecret.MatchString(s.key[last]) ||
		slices.ContainsFunc(s.key, secretTables.MatchString)
}

// secretLines returns the indexes of the lines with secrets.
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
