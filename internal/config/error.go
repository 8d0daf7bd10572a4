package config

import (
	"errors"
	"strings"
)

// Error holds all problems of a configuration. errors.Is and errors.As match each of them.
type Error struct {
	// File is the file's name, or "" if the configuration does not come from a file.
	File string
	// Problems has at least one entry. Syntax problems name the line, invalid values the key.
	Problems []error
}

// Error returns all problems in one line.
func (e *Error) Error() string {
	texts := make([]string, 0, len(e.Problems))
	for _, p := range e.Problems {
		texts = append(texts, p.Error())
	}
	text := strings.Join(texts, "; ")
	if e.File != "" {
		return e.File + ": " + text
	}
	return "configuration: " + text
}

// Unwrap returns the problems.
func (e *Error) Unwrap() []error { return e.Problems }

// inFile adds a file's name to an *Error. It returns other errors unchanged.
func inFile(err error, file string) error {
	var problems *Error
	if errors.As(err, &problems) {
		return &Error{File: file, Problems: problems.Problems}
	}
	return err
}
