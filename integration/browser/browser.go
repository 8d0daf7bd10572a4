// Package browser drives a headless Chromium for tests: Debian's, which integration/setup.sh installs, over its DevTools
// protocol. Chromium runs with a profile of its own, asks nobody for anything but what the page does, and ends with the test.
package browser

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// program is what Debian's package chromium-headless-shell brings.
const program = "/usr/bin/chromium-headless-shell"

// limit is how long Chromium may take to start, or a page to be what is waited for. In an emulated guest it is slow.
const limit = 2 * time.Minute

// Require skips a test where there is no Chromium, unless make, which installs it, runs the tests: then it fails.
func Require(t testing.TB) {
	t.Helper()
	_, err := os.Stat(program)
	if _, said := os.LookupEnv(dmtest.Variable); err != nil && !said {
		t.Skip("needs Chromium, which integration/setup.sh brings")
	}
	require.NoError(t, err)
}

// Page is a page in a window of its own.
type Page struct {
	devtools *devtools
}

// Options are how a window is.
type Options struct {
	Width, Height int
	Dark          bool // what the reader prefers
}

// Open starts Chromium with an empty page.
func Open(t testing.TB, o Options) *Page {
	t.Helper()
	Require(t)
	profile := t.TempDir()
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--remote-debugging-port=0", "--remote-allow-origins=*", "--user-data-dir="+profile, "--hide-scrollbars",
		fmt.Sprintf("--window-size=%d,%d", o.Width, o.Height), "about:blank")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Its helpers, too.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	log, err := os.Create(filepath.Join(profile, "log"))
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	require.NoError(t, log.Close())
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			text, err := os.ReadFile(log.Name())
			t.Logf("Chromium's log: %s %v", text, err)
		}
	})
	address := debugAddress(t, filepath.Join(profile, "DevToolsActivePort"))
	p := &Page{devtools: dial(t, address)}
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		p.call(t, domain+".enable", nil, nil)
	}
	scheme := "light"
	if o.Dark {
		scheme = "dark"
	}
	p.call(t, "Emulation.setEmulatedMedia", map[string]any{
		"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}},
	}, nil)
	p.call(t, "Emulation.setDeviceMetricsOverride", map[string]any{
		"width": o.Width, "height": o.Height, "deviceScaleFactor": 1, "mobile": false,
	}, nil)
	return p
}

// debugAddress waits until Chromium says in a file where it listens: the port, and the path of the browser, which is not used.
func debugAddress(t testing.TB, file string) string {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		content, err := os.ReadFile(file)
		if port, _, whole := strings.Cut(string(content), "\n"); err == nil && whole {
			return "127.0.0.1:" + port
		}
		require.True(t, time.Now().Before(deadline), "Chromium does not start")
		time.Sleep(50 * time.Millisecond)
	}
}

// Go shows what is at an address.
func (p *Page) Go(t testing.TB, url string) {
	t.Helper()
	var result struct {
		ErrorText string `json:"errorText"`
	}
	p.call(t, "Page.navigate", map[string]any{"url": url}, &result)
	require.Empty(t, result.ErrorText)
}

// Eval returns the value of a JavaScript expression.
func Eval[T any](t testing.TB, p *Page, expression string) T {
	t.Helper()
	var result struct {
		Result struct {
			Value T `json:"value"`
		} `json:"result"`
		ExceptionDetails json.RawMessage `json:"exceptionDetails"`
	}
	p.call(t, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &result)
	require.Empty(t, result.ExceptionDetails, "%s: %s", expression, result.ExceptionDetails)
	return result.Result.Value
}

// Wait returns when a JavaScript expression is true.
func (p *Page) Wait(t testing.TB, expression string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !Eval[bool](t, p, "Boolean("+expression+")") {
		require.True(t, time.Now().Before(deadline), "it never is true that %s", expression)
		time.Sleep(50 * time.Millisecond)
	}
}

// Text returns the text of the element with an id, as it is seen.
func (p *Page) Text(t testing.TB, id string) string {
	t.Helper()
	return Eval[string](t, p, fmt.Sprintf("document.getElementById(%q).innerText", id))
}

// Press presses a key that has this name and code in JavaScript, such as ArrowDown.
func (p *Page) Press(t testing.TB, key string, windowsCode int) {
	t.Helper()
	for _, kind := range []string{"rawKeyDown", "keyUp"} {
		p.call(t, "Input.dispatchKeyEvent", map[string]any{
			"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": windowsCode,
		}, nil)
	}
}

// Screenshot returns what the window shows, as PNG.
func (p *Page) Screenshot(t testing.TB) []byte {
	t.Helper()
	var result struct {
		Data string `json:"data"`
	}
	p.call(t, "Page.captureScreenshot", map[string]any{"format": "png"}, &result)
	picture, err := base64.StdEncoding.DecodeString(result.Data)
	require.NoError(t, err)
	return picture
}

// Problems are what has gone wrong in the page so far: errors and warnings on its console, exceptions, and what the policy of
// the page has stopped.
func (p *Page) Problems() []string { return p.devtools.noted(&p.devtools.problems) }

// Requests are the addresses that the page has asked for so far.
func (p *Page) Requests() []string { return p.devtools.noted(&p.devtools.requests) }

func (p *Page) call(t testing.TB, method string, params, result any) {
	t.Helper()
	answer, err := p.devtools.call(method, params)
	require.NoError(t, err, method)
	if result != nil {
		require.NoError(t, json.Unmarshal(answer, result), method)
	}
}
