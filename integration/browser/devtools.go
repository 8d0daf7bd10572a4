package browser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/stretchr/testify/require"
)

// devtools is a connection to one page: numbered calls with their answers, and events in between. It is not chromedp,
// whose dependencies have more code than it saves here, and whose API still changes.
type devtools struct {
	conn *websocket.Conn

	mu       sync.Mutex
	last     int
	waiting  map[int]chan message
	problems []string
	requests []string
}

// message is a call, an answer or an event.
type message struct {
	ID     int             `json:"id,omitempty"`
	Method string          `json:"method,omitempty"`
	Params any             `json:"params,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// dial connects to the only page of a Chromium that has just started.
func dial(t testing.TB, address string) *devtools {
	t.Helper()
	response, err := http.Get("http://" + address + "/json/list")
	require.NoError(t, err)
	defer response.Body.Close()
	var pages []struct {
		Type string `json:"type"`
		URL  string `json:"webSocketDebuggerUrl"`
	}
	require.NoError(t, json.NewDecoder(response.Body).Decode(&pages))
	at := slices.IndexFunc(pages, func(p struct {
		Type string `json:"type"`
		URL  string `json:"webSocketDebuggerUrl"`
	}) bool {
		return p.Type == "page"
	})
	require.GreaterOrEqual(t, at, 0, "%v", pages)
	conn, _, err := websocket.Dial(context.Background(), pages[at].URL, nil) //nolint:bodyclose // nil after a success
	require.NoError(t, err)
	conn.SetReadLimit(64 << 20)
	d := &devtools{conn: conn, waiting: make(map[int]chan message)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.read()
	}()
	t.Cleanup(func() {
		_ = conn.CloseNow() // Chromium may be gone
		<-ended
	})
	return d
}

// read passes on answers and records events until the connection ends.
func (d *devtools) read() {
	for {
		var raw json.RawMessage
		if err := wsjson.Read(context.Background(), d.conn, &raw); err != nil {
			return
		}
		var m message
		if json.Unmarshal(raw, &m) != nil {
			return
		}
		d.mu.Lock()
		if answered := d.waiting[m.ID]; answered != nil {
			delete(d.waiting, m.ID)
			answered <- m
		} else {
			d.note(m.Method, raw)
		}
		d.mu.Unlock()
	}
}

// note keeps the events that tests read.
func (d *devtools) note(method string, raw json.RawMessage) {
	var event struct {
		Params struct {
			Type    string // of a console message
			Request struct{ URL string }
			Entry   struct{ Level, Text, URL string }
		}
	}
	if err := json.Unmarshal(raw, &event); err != nil {
		d.problems = append(d.problems, err.Error())
		return
	}
	switch method {
	case "Network.requestWillBeSent":
		d.requests = append(d.requests, event.Params.Request.URL)
	case "Runtime.exceptionThrown":
		d.problems = append(d.problems, string(raw))
	case "Runtime.consoleAPICalled":
		if event.Params.Type == "error" || event.Params.Type == "warning" {
			d.problems = append(d.problems, string(raw))
		}
	case "Log.entryAdded":
		d.problems = append(d.problems, fmt.Sprintf("%+v", event.Params.Entry))
	}
}

func (d *devtools) noted(list *[]string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(*list)
}

// call sends a call and waits for its answer.
func (d *devtools) call(method string, params any) (json.RawMessage, error) {
	answered := make(chan message, 1)
	d.mu.Lock()
	d.last++
	id := d.last
	d.waiting[id] = answered
	d.mu.Unlock()
	if err := wsjson.Write(context.Background(), d.conn, message{ID: id, Method: method, Params: params}); err != nil {
		return nil, err
	}
	select {
	case m := <-answered:
		if m.Error != nil {
			return nil, errors.New(m.Error.Message)
		}
		return m.Result, nil
	case <-time.After(limit):
		return nil, fmt.Errorf("no answer to %s in %s", method, limit)
	}
}
