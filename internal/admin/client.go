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

// ErrNoDaemon is returned if no process answers on the admin socket. It matches
// errdefs.ErrUnavailable.
var ErrNoDaemon = errdefs.ErrUnavailable.WithMessage("no daemon answers")

// Client talks to a daemon on its admin socket. Its methods return errors with the classes of
// errdefs, like those of Backend.
type Client struct {
	address string
	http    http.Client
}

// NewClient returns a client for the socket at address. Each request makes a connection.
func NewClient(address string) *Client {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	return &Client{address: address, http: http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true, // a command sends few requests
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", address)
			},
		},
	}}
}

// Transport sends requests to the daemon, and ignores the host in their URLs.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// Info returns the state of the daemon and its pool.
func (c *Client) Info(ctx context.Context) (Info, error) { return get[Info](ctx, c, "/v1/info") }

// Pool returns the state of the pool.
func (c *Client) Pool(ctx context.Context) (Pool, error) { return get[Pool](ctx, c, "/v1/pool") }

// Snapshots returns all snapshots, sorted by key. Labels make the answer large.
func (c *Client) Snapshots(ctx context.Context, labels bool) ([]Snapshot, error) {
	if labels {
		list, err := get[SnapshotList](ctx, c, "/v1/snapshots")
		return list.Snapshots, err
	}
	list, err := get[SnapshotList](ctx, c, "/v1/snapshots?labels=no")
	return list.Snapshots, err
}

// Owners returns the owners of the snapshots.
func (c *Client) Owners(ctx context.Context) (Owners, error) {
	return get[Owners](ctx, c, "/v1/owners")
}

// Activity returns the daemon's calls and its trash.
func (c *Client) Activity(ctx context.Context) (Activity, error) {
	return get[Activity](ctx, c, "/v1/activity")
}

// History returns the fill of the pool over time.
func (c *Client) History(ctx context.Context) (History, error) {
	return get[History](ctx, c, "/v1/history")
}

// Inspect describes one snapshot.
func (c *Client) Inspect(ctx context.Context, key string) (Inspection, error) {
	return get[Inspection](ctx, c, "/v1/inspect?"+url.Values{"key": {key}}.Encode())
}

// Diff lists the changes of a snapshot to its parent. The comparison stops when ctx ends.
func (c *Client) Diff(ctx context.Context, key string) (Difference, error) {
	return ask[Difference](ctx, c, http.MethodGet, "/v1/diff?"+url.Values{"key": {key}}.Encode(), diffTime)
}

// Check has the daemon compare the store, the kernel and the pool, and repair the problems if
// repair is set.
func (c *Client) Check(ctx context.Context, repair bool) (check.Report, error) {
	method := http.MethodGet
	if repair {
		method = http.MethodPost
	}
	return ask[check.Report](ctx, c, method, "/v1/check", checkTime)
}

// ExtendPool has the daemon extend its pool.
func (c *Client) ExtendPool(ctx context.Context, want Extension) (Pool, error) {
	query := url.Values{}
	for name, bytes := range map[string]uint64{"data_bytes": want.Data, "metadata_bytes": want.Metadata} {
		if bytes > 0 {
			query.Set(name, strconv.FormatUint(bytes, 10))
		}
	}
	return ask[Pool](ctx, c, http.MethodPost, "/v1/pool/extend?"+query.Encode(), answerTime)
}

// Trim has the daemon return a snapshot's freed blocks to the pool. The trim stops when ctx ends.
func (c *Client) Trim(ctx context.Context, key string) (Trimming, error) {
	return ask[Trimming](ctx, c, http.MethodPost, "/v1/pool/trim?"+url.Values{"key": {key}}.Encode(), trimTime)
}

// Fork has the daemon let one Prepare have a snapshot's content.
func (c *Client) Fork(ctx context.Context, key string) (Fork, error) {
	return ask[Fork](ctx, c, http.MethodPost, "/v1/fork?"+url.Values{"key": {key}}.Encode(), answerTime)
}

// Leftovers returns the kept leftovers.
func (c *Client) Leftovers(ctx context.Context) ([]Leftover, error) {
	list, err := get[LeftoverList](ctx, c, "/v1/leftovers")
	return list.Leftovers, err
}

// RemoveLeftover has the daemon delete a kept leftover, and returns the others.
func (c *Client) RemoveLeftover(ctx context.Context, id uint32) ([]Leftover, error) {
	query := url.Values{"device_id": {strconv.FormatUint(uint64(id), 10)}}
	list, err := ask[LeftoverList](ctx, c, http.MethodPost, "/v1/leftovers/remove?"+query.Encode(), answerTime)
	return list.Leftovers, err
}

// AcceptClient lets the present process of a client remove the snapshots of earlier clients. An
// empty name is the default client's.
func (c *Client) AcceptClient(ctx context.Context, name string) (ClientInfo, error) {
	return ask[ClientInfo](ctx, c, http.MethodPost, "/v1/client/accept?"+ofClient(name), answerTime)
}

// ResetClient forgets the process of a client. The next process that calls becomes the client.
func (c *Client) ResetClient(ctx context.Context, name string) (ClientInfo, error) {
	return ask[ClientInfo](ctx, c, http.MethodPost, "/v1/client/reset?"+ofClient(name), answerTime)
}

// RemoveClient has the daemon remove a client that is no longer configured, with all its snapshots.
func (c *Client) RemoveClient(ctx context.Context, name string) (RemovedClient, error) {
	return ask[RemovedClient](ctx, c, http.MethodPost, "/v1/client/remove?"+ofClient(name), removeTime)
}

func ofClient(name string) string {
	if name == "" {
		return ""
	}
	return url.Values{"client": {name}}.Encode()
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	return ask[T](ctx, c, http.MethodGet, path, answerTime)
}

func ask[T any](ctx context.Context, c *Client, method, path string, limit time.Duration) (T, error) {
	var result T
	ctx, cancel := context.WithTimeout(ctx, limit+transferTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+hostName+path, nil)
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
		return result, fmt.Errorf("read the answer of the daemon at %s: %w", c.address, err)
	}
	return result, nil
}

// connectError explains why the daemon does not answer.
func (c *Client) connectError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w on %s: is \"thinsnap serve\" running?", ErrNoDaemon, c.address)
	case errors.Is(err, fs.ErrPermission):
		return errdefs.ErrPermissionDenied.WithMessage(
			fmt.Sprintf("no permission to use %s: the admin socket is for root", c.address))
	default:
		return fmt.Errorf("ask the daemon at %s: %w", c.address, err)
	}
}

// remoteError converts an error answer to the daemon's error.
func remoteError(response *http.Response) error {
	class := errhttp.ToNative(response.StatusCode)
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err != nil {
		return fmt.Errorf("read the daemon's error: %w", errors.Join(class, err))
	}
	var sent problem
	if err := json.Unmarshal(body, &sent); err != nil || sent.Message == "" {
		return fmt.Errorf("the daemon answered %s: %w", response.Status, class)
	}
	if sent.PoolNotOpen {
		class = ErrNotOpen
	}
	return &daemonError{message: sent.Message, class: class}
}

// daemonError has the text and the errdefs class of an error in the daemon.
type daemonError struct {
	message string
	class   error
}

func (e *daemonError) Error() string { return e.message }

func (e *daemonError) Unwrap() error { return e.class }
