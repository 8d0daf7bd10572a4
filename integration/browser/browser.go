// Package browser drives a headless Chromium for tests over the DevTools protocol. integration/setup.sh installs
// Debian's. Chromium has its own profile, requests nothing but what the page requests, and ends with the test.
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

// program is from Debian's package chromium-headless-shell.
const program = "/usr/bin/chromium-headless-shell"

// limit bounds the start of Chromium, each call and each wait for a page, which are slow on a busy machine.
const limit = 2 * time.Minute

// Require skips a test on a machine without Chromium. Under make, which installs Chromium, the test fails instead.
func Require(t testing.TB) {
	t.Helper()
	_, err := os.Stat(program)
	if _, said := os.LookupEnv(dmtest.Variable); err != nil && !said {
		t.Skip("needs Chromium, which integration/setup.sh installs")
	}
	require.NoError(t, err)
}

// Page is a page in a window of its own.
type Page struct {
	devtools *devtools
}

// Options describe a window.
type Options struct {
	Width, Height int
	Dark          bool // the user prefers a dark colour scheme
}

// Open starts Chromium with an empty page.
func Open(t testing.TB, o Options) *Page {
	t.Helper()
	Require(t)
	profile := t.TempDir()
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--remote-debugging-port=0", "--user-data-dir="+profile, "--hide-scrollbars",
		fmt.Sprintf("--window-size=%d,%d", o.Width, o.Height), "about:blank")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Kills Chromium's helper processes, too.
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

// debugAddress waits until Chromium has written its port to the first line of a file.
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

// Go navigates to an address.
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

// Wait waits until a JavaScript expression is true.
func (p *Page) Wait(t testing.TB, expression string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !Eval[bool](t, p, "Boolean("+expression+")") {
		require.True(t, time.Now().Before(deadline), "not true after %s: %s", limit, expression)
		time.Sleep(50 * time.Millisecond)
	}
}

// Text returns the visible text of the element with this id.
func (p *Page) Text(t testing.TB, id string) string {
	t.Helper()
	return Eval[string](t, p, fmt.Sprintf("document.getElementById(%q).innerText", id))
}

// Press presses a key. key is its name in JavaScript, such as ArrowDown.
func (p *Page) Press(t testing.TB, key string, windowsCode int) {
	t.Helper()
	for _, kind := range []string{"rawKeyDown", "keyUp"} {
		p.call(t, "Input.dispatchKeyEvent", map[string]any{
			"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": windowsCode,
		}, nil)
	}
}

// Screenshot returns a picture of the window, as PNG.
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

// Problems returns the page's problems so far: errors and warnings on its console, exceptions, and requests that its
// content security policy has blocked.
func (p *Page) Problems() []string { return p.devtools.noted(&p.devtools.problems) }

// Requests returns the addresses that the page has requested so far.
func (p *Page) Requests() []string { return p.devtools.noted(&p.devtools.requests) }

func (p *Page) call(t testing.TB, method string, params, result any) {
	t.Helper()
	answer, err := p.devtools.call(method, params)
	require.NoError(t, err, method)
	if result != nil {
		require.NoError(t, json.Unmarshal(answer, result), method)
	}
}
