// Package admin serves the daemon's second socket, for its operator: the daemon's state and devices
// as JSON over HTTP, metrics and profiles. It also has the client of that socket.
//
// The JSON types are in wire.go. They are a stable interface: fields keep their names, and new
// fields may be added. All sizes are in bytes.
package admin
