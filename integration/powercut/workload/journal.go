package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

// journal prints the operations for the host.
type journal struct {
	out *json.Encoder
	// acknowledged is called for each acknowledged operation.
	acknowledged func(model.Event) error
}

func newJournal() *journal {
	return &journal{out: json.NewEncoder(os.Stdout), acknowledged: func(model.Event) error { return nil }}
}

// print ignores errors, because the reader is gone after a power cut.
func (j *journal) print(e model.Event) { _ = j.out.Encode(e) }

func (j *journal) phase(name string) { j.print(model.Event{Op: model.Phase, Key: name}) }

// do prints an operation, runs it, prints it again, and updates the model. f can set fields of the event.
func (j *journal) do(m *model.Model, e *model.Event, f func() error) error {
	e.Begin = true
	j.print(*e)
	m.Apply(*e)
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", e, err)
	}
	e.Begin = false
	m.Apply(*e)
	j.print(*e)
	return j.acknowledged(*e)
}

// settle records the result of the operation in doubt.
func (j *journal) settle(m *model.Model, done bool) {
	e := model.Event{Op: model.Settled, Done: done}
	m.Apply(e)
	j.print(e)
}
