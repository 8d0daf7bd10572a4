package snapshotter

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestForkTokensEnd(t *testing.T) {
	var tokens forkTokens
	grant := forkGrant{key: "ns/1/a", expires: time.Now().Add(time.Hour)}
	old := forkGrant{key: "ns/1/a", expires: time.Now().Add(-time.Nanosecond)}
	token, err := tokens.issue(old)
	require.NoError(t, err)
	_, err = tokens.use(token, "ns/2/b", "")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.NotContains(t, err.Error(), token)
	tokens.giveBack(token, old)
	_, err = tokens.use(token, "ns/2/b", "")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)

	issued := map[string]bool{token: true}
	for range maxForkTokens {
		token, err := tokens.issue(grant)
		require.NoError(t, err)
		require.False(t, issued[token])
		issued[token] = true
	}
	require.Len(t, tokens.grants, maxForkTokens, "the old token has expired")
	_, err = tokens.issue(grant)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	for token := range tokens.grants {
		_, err := tokens.use(token, "ns/2/b", "")
		require.NoError(t, err)
		_, err = tokens.use(token, "ns/2/b", "")
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
	require.Empty(t, tokens.grants)
}
