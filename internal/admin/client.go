package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/check"
)

// ErrNoDaemon is returned when no process answers on the admin socket. It is an errdefs.ErrUnavailable.
var ErrNoDaemon = errdefs.ErrUnavailable.WithMessage("no daemon answers")

// Client asks a daemon on its admin socket. Its methods are those of a Backend, and return errors of the same classes.
type Client struct {
	address string
	http    http.Client
}

// NewClient returns a client for the socket at address. It connects when it is used.
func NewClient(address string) *Client {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	return &Client{address: address, http: http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true, // a command asks once
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", address)
			},
		},
	}}
}

// Transport sends requests to the daemon, whatever host they are for.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// Info asks for everything about the daemon and its pool.
func (c *Client) Info(ctx context.Context) (Info, error) { return get[Info](ctx, c, "/v1/info") }

// Pool asks for the pool alone.
func (c *Client) Pool(ctx context.Context) (Pool, error) { return get[Pool](ctx, c, "/v1/pool") }

// Snapshots asks for all snapshots, sorted by key.
func (c *Client) Snapshots(ctx context.Context) ([]Snapshot, error) {
	return get[[]Snapshot](ctx, c, "/v1/snapshots")
}

// Activity asks for what the daemon is doing.
func (c *Client) Activity(ctx context.Context) (Activity, error) {
	return get[Activity](ctx, c, "/v1/activity")
}

// History asks for how full the pool was.
func (c *Client) History(ctx context.Context) (History, error) {
	return get[History](ctx, c, "/v1/history")
}

// Inspect asks for one snapshot.
func (c *Client) Inspect(ctx context.Context, key string) (Inspection, error) {
	return get[Inspection](ctx, c, "/v1/inspect?"+url.Values{"key": {key}}.Encode())
}

// Check has the daemon hold the store, the kernel and the pool against each other, and with repair mend what it can.
func (c *Client) Check(ctx context.Context, repair bool) (check.Report, error) {
	method := http.MethodGet
	if repair {
		method = http.MethodPost
	}
	return ask[check.Report](ctx, c, method, "/v1/check", checkTime)
}

// ExtendPool has the daemon make its pool larger.
func (c *Client) ExtendPool(ctx context.Context, want Extension) (Pool, error) {
	query := url.Values{}
	for name, bytes := range map[string]uint64{"data": want.Data, "metadata": want.Metadata} {
		if bytes > 0 {
			query.Set(name, strconv.FormatUint(bytes, 10))
		}
	}
	return ask[Pool](ctx, c, http.MethodPost, "/v1/pool/extend?"+query.Encode(), answerTime)
}

// Trim has the daemon give what was deleted from a snapshot back to the pool. It ends when ctx does.
func (c *Client) Trim(ctx context.Context, key string) (Trimming, error) {
	return ask[Trimming](ctx, c, http.MethodPost, "/v1/pool/trim?"+url.Values{"key": {key}}.Encode(), trimTime)
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	return ask[T](ctx, c, http.MethodGet, path, answerTime)
}

func ask[T any](ctx context.Context, c *Client, method, path string, limit time.Duration) (T, error) {
	var result T
	ctx, cancel := context.WithTimeout(ctx, limit+readTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://thinsnap"+path, nil)
	if err != nil {
		return result, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return result, c.connectError(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return result, remoteError(response)
	}
	if err := json.NewDecoder(response.Body).Decode(&result); err != nil {
		return result, fmt.Errorf("reading the answer of the daemon at %s: %w", c.address, err)
	}
	return result, nil
}

// connectError says what to do about a daemon that does not answer.
func (c *Client) connectError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w on %s: is \"thinsnap serve\" running?", ErrNoDaemon, c.address)
	case errors.Is(err, fs.ErrPermission):
		return errdefs.ErrPermissionDenied.WithMessage(
			fmt.Sprintf("no permission to use %s: the admin socket is for root", c.address))
	default:
		return fmt.Errorf("asking the daemon at %s: %w", c.address, err)
	}
}

// remoteError makes the error that the daemon met out of its answer.
func remoteError(response *http.Response) error {
	class := errhttp.ToNative(response.StatusCode)
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err != nil {
		return fmt.Errorf("reading the daemon's error: %w", errors.Join(class, err))
	}
	var sent problem
	if err := json.Unmarshal(body, &sent); err != nil || sent.Message == "" {
		return fmt.Errorf("the daemon answers %s: %w", response.Status, class)
	}
	return &daemonError{message: sent.Message, class: class}
}

// daemonError is an error with the text of one process and the class of errdefs that it had there.
type daemonError struct {
	message string
	class   error
}

func (e *daemonError) Error() string { return e.message }

func (e *daemonError) Unwrap() error { return e.class }
