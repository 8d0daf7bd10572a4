package powercut

import (
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

// Once the events have ended, the error is known, also if the workload printed something that is no event.
func TestFollow(t *testing.T) {
	failed := errors.New("exit status 1")
	for name, c := range map[string]struct {
		output string
		ended  error
		says   string
	}{
		"success":    {`{"op":"phase","key":"a"}`, nil, ""},
		"failure":    {`{"op":"phase","key":"a"}`, failed, "exit status 1"},
		"other text": {`{"op":"phase","key":"a"} panic`, nil, "read the output of the workload"},
	} {
		t.Run(name, func(t *testing.T) {
			b := &boot{events: make(chan model.Event, 2)}
			reader, writer := io.Pipe()
			waited := make(chan error, 1)
			go b.follow(reader, waited)
			_, err := io.WriteString(writer, c.output)
			require.NoError(t, err)
			waited <- c.ended
			require.NoError(t, writer.Close())
			var events []model.Event
			for e := range b.events {
				events = append(events, e)
			}
			require.Equal(t, []model.Event{{Op: model.Phase, Key: "a"}}, events)
			if c.says == "" {
				require.NoError(t, b.err)
				return
			}
			require.ErrorContains(t, b.err, c.says)
		})
	}
}
