// Package wire is the protocol between the host and the agent in a guest, over a virtio-serial port or a serial line.
//
// Both sides send gob-encoded [Message] values, one stream each way. The agent sends Hello, the host answers with
// Setup, and the agent sends Ready. Then the host starts commands, each under a new ID of its choice, and the agent
// reports their output and end under the same ID.
package wire

import (
	"encoding/gob"
	"io"
	"sync"
)

// PortName is the virtio-serial port's name on both sides.
const PortName = "thinsnap.agent"

// PortParameter is the kernel parameter that names the port's device in a guest without virtio-serial.
const PortParameter = "thinsnap.port"

// Kind decides which fields of a Message are used.
type Kind uint8

// The kinds of messages.
const (
	Hello    Kind = iota + 1 // agent to host: the agent runs
	Setup                    // host to agent: Setup
	Ready                    // agent to host: Disks, or Error if the setup failed
	Exec                     // host to agent: ID, Exec
	Signal                   // host to agent: ID, Signal
	Stdout                   // agent to host: ID, Data
	Stderr                   // agent to host: ID, Data
	Exit                     // agent to host: ID, Status, and Error if the program could not be started
	Shutdown                 // host to agent: flush all disks and power off
)

// Message is a message in either direction.
type Message struct {
	Kind   Kind
	ID     uint32
	Data   []byte
	Setup  *SetupParams
	Exec   *ExecParams
	Signal int
	Status int // exit status; 128 + signal number for a program killed by a signal
	Error  string
	Disks  []string // device paths, in the order of SetupParams
}

// SetupParams is the guest's setup.
type SetupParams struct {
	Modules     string  // host path of the directory to mount at /lib/modules
	Shares      []Share // writable directories of the host
	DiskSerials []string
	Disks       []string // device paths that the host knows, used instead of serial numbers
	Udev        bool     // start systemd-udevd
	Root        bool     // the guest has a system of its own: set up nothing but find the disks
}

// Share is a directory of the host that is writable in the guest, at the same path. Without a tag it is mounted as
// hostfs, through the user-mode kernel's own process.
type Share struct {
	Tag, Path string
}

// ExecParams describes a program to start. Env is added to the agent's own environment and wins.
type ExecParams struct {
	Args []string
	Env  []string
	Dir  string
}

// Conn sends and receives messages. Send is safe for concurrent use; Receive is for one goroutine.
type Conn struct {
	mu  sync.Mutex
	enc *gob.Encoder
	dec *gob.Decoder
}

// NewConn makes a Conn over an open stream.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{enc: gob.NewEncoder(rw), dec: gob.NewDecoder(rw)}
}

// Send writes one message.
func (c *Conn) Send(m Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enc.Encode(m)
}

// Receive waits for the next message.
func (c *Conn) Receive() (Message, error) {
	var m Message
	err := c.dec.Decode(&m)
	return m, err
}
