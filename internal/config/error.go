package config

import (
	"errors"
	"strings"
)

// Error holds everything that is wrong with a configuration. errors.Is and errors.As see each problem.
type Error struct {
	// File names the file; empty for a configuration that was not read from one.
	File string
	// Problems has at least one entry. Those of reading name the line, those of checking the key.
	Problems []error
}

// Error gives all problems in one line.
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

// inFile puts a file's name to a configuration error and leaves every other error as it is.
func inFile(err error, file string) error {
	var problems *Error
	if errors.As(err, &problems) {
		return &Error{File: file, Problems: problems.Problems}
	}
	return err
}
