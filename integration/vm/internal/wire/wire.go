// Package wire is the conversation between the host and the agent in a guest, held over one
// virtio-serial port.
//
// Both sides send [Message] values, gob-encoded, one stream each way. The agent speaks first
// (Hello); the host answers with Setup; the agent then sends Ready. After that the host starts
// commands, each under an ID of its own choosing that it never uses twice, and the agent reports
// their output and their end under the same ID.
package wire

import (
	"encoding/gob"
	"io"
	"sync"
)

// PortName is the virtio-serial port's name on both sides.
const PortName = "thinsnap.agent"

// PortParameter is the parameter of the kernel that names the port's device in a guest without virtio-serial.
const PortParameter = "thinsnap.port"

// Kind says which of a Message's fields count.
type Kind uint8

// The kinds of message.
const (
	Hello    Kind = iota + 1 // agent to host: the agent runs
	Setup                    // host to agent: Setup
	Ready                    // agent to host: Disks, or Error when the set-up failed
	Exec                     // host to agent: ID, Exec
	Signal                   // host to agent: ID, Signal
	Stdout                   // agent to host: ID, Data
	Stderr                   // agent to host: ID, Data
	Exit                     // agent to host: ID, Status, or Error when the program could not be started
	Shutdown                 // host to agent: write everything to the disks and power off
)

// Message is what passes in either direction.
type Message struct {
	Kind   Kind
	ID     uint32
	Data   []byte
	Setup  *SetupParams
	Exec   *ExecParams
	Signal int
	Status int // exit status; 128 + signal number for a program ended by a signal
	Error  string
	Disks  []string // device paths, in the order of SetupParams
}

// SetupParams is how the host wants the guest to be.
type SetupParams struct {
	Modules     string  // host path of the directory to show at /lib/modules
	Shares      []Share // writable directories of the host
	DiskSerials []string
	Disks       []string // device paths that the host knows, instead of serial numbers
	Udev        bool     // start systemd-udevd
	Root        bool     // the guest is a system of its own: only the disks are looked for
}

// Share is a directory of the host that the guest may write to, at the same path. Without a tag it is reached through
// the kernel's own process.
type Share struct {
	Tag, Path string
}

// ExecParams describes a program to start. Env is laid over the agent's own environment.
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
