// Package roff writes manual pages in the man(7) language, for the generators of docs/man.
//
// It is not go-md2man, which would save 60 lines, but needs texts escaped for Markdown instead of
// roff, and adds a Markdown parser to go.mod.
package roff

import (
	"fmt"
	"strings"
)

// Page is an unfinished manual page.
type Page struct {
	text  strings.Builder
	begun bool // the last heading has text below it
}

// New begins a page with its title and the section NAME. about is a phrase of a few words.
func New(name string, section int, about string) *Page {
	p := &Page{}
	p.line(`.\" Written by "go generate" from the descriptions in the code.`)
	p.line(fmt.Sprintf(".TH %s %d \"\" thinsnap \"thinsnap manual\"", strings.ToUpper(name), section))
	p.Section("NAME")
	p.Paragraph(Escape(name) + ` \- ` + Escape(about))
	return p
}

// Section begins a section. By custom its title is in capitals.
func (p *Page) Section(title string) { p.heading(".SH", title) }

// Part begins a subsection.
func (p *Page) Part(title string) { p.heading(".SS", title) }

// Paragraph writes a paragraph. It does not escape the roff, which comes from [Escape], [Bold] and
// [Italic].
func (p *Page) Paragraph(roff string) {
	p.space()
	p.line(roff)
}

// Item writes a paragraph that is indented below a tag.
func (p *Page) Item(tag, roff string) {
	p.line(".TP")
	p.begun = true
	p.line(tag)
	p.line(roff)
}

// Literal writes lines of plain text unchanged.
func (p *Page) Literal(text string) {
	p.space()
	p.line(".RS 4")
	p.line(".EX")
	for line := range strings.Lines(text) {
		p.line(Escape(strings.TrimSuffix(line, "\n")))
	}
	p.line(".EE")
	p.line(".RE")
}

func (p *Page) heading(request, title string) {
	p.line(request + ` "` + Escape(title) + `"`)
	p.begun = false
}

func (p *Page) space() {
	if p.begun {
		p.line(".PP")
	}
	p.begun = true
}

func (p *Page) line(roff string) { p.text.WriteString(roff + "\n") }

// String returns the page so far.
func (p *Page) String() string { return p.text.String() }

// Escape returns a plain text as roff. No line of it begins a request.
func Escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, `"`, `\(dq`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// Bold returns a plain text, to be typed literally, as bold roff.
func Bold(text string) string { return `\fB` + Escape(text) + `\fP` }

// Italic returns the name of a placeholder as italic roff.
func Italic(text string) string { return `\fI` + Escape(text) + `\fP` }
