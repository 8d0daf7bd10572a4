package rpc

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// Admission decides whether a client may make a call. *clients.Registry implements it.
type Admission interface {
	Admit(ctx context.Context, call clients.Call) error
}

func (i *interceptor) admit(ctx context.Context, req any) error {
	if i.admission == nil {
		return nil
	}
	call := clients.Call{}
	if r, ok := req.(interface{ GetSnapshotter() string }); ok {
		call.Proxy = r.GetSnapshotter()
	}
	call.Process = Caller(ctx)
	return i.admission.Admit(ctx, call)
}

// Caller returns the process that makes a call, or the zero Process if it cannot be seen.
func Caller(ctx context.Context) clients.Process {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(peerInfo); ok {
			return info.process
		}
	}
	return clients.Process{}
}

// peerCredentials finds the process of a connection when it is accepted. It refuses none: a process
// refused in the handshake would not get the reason.
type peerCredentials struct{}

// peerInfo has the process that peerCredentials found.
type peerInfo struct {
	credentials.CommonAuthInfo
	process clients.Process
}

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "SO_PEERCRED" }

// ServerHandshake implements credentials.TransportCredentials.
func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	process, err := clients.Peer(conn)
	if err != nil {
		return nil, nil, err
	}
	return conn, peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, process}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.ErrUnsupported
}

// Info implements credentials.TransportCredentials.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "SO_PEERCRED"}
}

// Clone implements credentials.TransportCredentials.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (peerCredentials) OverrideServerName(string) error { return nil }
