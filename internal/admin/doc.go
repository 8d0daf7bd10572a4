// Package admin is the HTTP API on the daemon's admin socket: its server, its client and its JSON
// types. It serves the daemon's state, changes by the operator, metrics, profiles and the web page.
//
// The JSON types are in wire.go. They are a stable interface: fields keep their names, and new
// fields may be added. All sizes are in bytes.
package admin
