package clients

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// BuildKit's OCI worker uses a snapshotter without containerd. It keeps a random id beside the database of its
// snapshots (worker/runc/runc.go), and buildkitd tells the id on its socket.

var errNoWorker = errors.New("it told no id of a BuildKit worker")

// isBuildKit reports whether a process may be buildkitd. No other process is asked: systemd may listen for a buildkitd
// that is not running, and would start it.
func isBuildKit(p Process) bool { return strings.Contains(filepath.Base(p.Program), "buildkit") }

func askWorker(ctx context.Context, p Process) (id string, err error) {
	addresses, err := addressesOf(p, "buildkit")
	if err != nil {
		return "", err
	}
	failed := errNoWorker
	for _, address := range addresses {
		if id, err = askWorkerAt(ctx, address, p); err == nil {
			return id, nil
		}
		failed = fmt.Errorf("%w; %s: %w", failed, address, err)
	}
	return "", failed
}

func askWorkerAt(ctx context.Context, address string, p Process) (id string, err error) {
	conn, err := newConn(address, p)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	var answer []byte
	err = conn.Invoke(ctx, "/moby.buildkit.v1.Control/ListWorkers", []byte(nil), &answer, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		return "", err
	}
	if id, err = workerOf(answer); err == nil && id == "" {
		err = errNoWorker
	}
	return id, err
}

// rawCodec passes messages as bytes.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("a %T is not a message", v)
	}
	return b, nil
}

func (rawCodec) Unmarshal(b []byte, v any) error {
	to, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a %T cannot hold a message", v)
	}
	*to = slices.Clone(b)
	return nil
}

// Field numbers of BuildKit's messages (api/services/control/control.proto, api/types/worker.proto).
const (
	fieldRecord = 1 // of ListWorkersResponse
	fieldID     = 1 // of WorkerRecord
	fieldLabels = 2
	fieldKey    = 1 // of a label
	fieldValue  = 2
	// labelExecutor is "oci" for a worker that uses a snapshotter without containerd.
	labelExecutor = "org.mobyproject.buildkit.worker.executor"
)

// workerOf returns the id of the OCI worker in a ListWorkersResponse, or "" if it has none.
func workerOf(response []byte) (id string, err error) {
	err = eachField(response, func(number protowire.Number, record []byte) error {
		if number != fieldRecord {
			return nil
		}
		worker, executor := "", ""
		err := eachField(record, func(number protowire.Number, value []byte) error {
			switch number {
			case fieldID:
				worker = string(value)
			case fieldLabels:
				k, v := "", ""
				err := eachField(value, func(number protowire.Number, text []byte) error {
					switch number {
					case fieldKey:
						k = string(text)
					case fieldValue:
						v = string(text)
					}
					return nil
				})
				if k == labelExecutor {
					executor = v
				}
				return err
			}
			return nil
		})
		if executor == "oci" {
			id = worker
		}
		return err
	})
	return id, err
}

// eachField calls visit for each length-delimited field of a message, and skips the others.
func eachField(message []byte, visit func(protowire.Number, []byte) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
				return protowire.ParseError(n)
			}
			message = message[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := visit(number, value); err != nil {
			return err
		}
		message = message[n:]
	}
	return nil
}
