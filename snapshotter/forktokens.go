package snapshotter

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// ForkTokenLife is how long a token of IssueFork is valid.
	ForkTokenLife = time.Minute
	// maxForkTokens is the maximum number of unused tokens.
	maxForkTokens = 1024
	// forkTokenBytes is the number of random bytes in a token.
	forkTokenBytes = 32
)

// forkGrant is the permission of a token: one fork of a volume.
type forkGrant struct {
	key     string
	volume  thin.ID
	parent  string
	expires time.Time
}

// forkTokens are the unused tokens. They are in memory only.
type forkTokens struct {
	mu     sync.Mutex
	grants map[string]forkGrant
}

func (t *forkTokens) issue(grant forkGrant) (token string, err error) {
	random := make([]byte, forkTokenBytes)
	if _, err := rand.Read(random); err != nil {
		return "", err
	}
	token = hex.EncodeToString(random)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(t.grants, func(_ string, g forkGrant) bool { return g.expired(now) })
	if len(t.grants) >= maxForkTokens {
		return "", fmt.Errorf("%d tokens for forks are unused, the maximum: use them, or try again in %v: %w",
			maxForkTokens, ForkTokenLife, errdefs.ErrResourceExhausted)
	}
	if t.grants == nil {
		t.grants = make(map[string]forkGrant)
	}
	t.grants[token] = grant
	return token, nil
}

func (g forkGrant) expired(now time.Time) bool { return !now.Before(g.expires) }

// use takes a token for a new snapshot. It returns errdefs.ErrInvalidArgument if the token does not allow
// that. The error does not contain the token, which may still be valid.
func (t *forkTokens) use(token, key, parent string) (forkGrant, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	grant, known := t.grants[token]
	var reason string
	switch {
	case !known || grant.expired(time.Now()):
		reason = fmt.Sprintf("its token is unknown, was used, or is older than %v: get another one with `thinsnap fork --token`",
			ForkTokenLife)
	case namespaceOf(key) != namespaceOf(grant.key):
		reason = "its token is for another namespace"
	case parent != grant.parent:
		reason = fmt.Sprintf("the parent must be that of the source, %q, not %q", grant.parent, parent)
	default:
		delete(t.grants, token)
		return grant, nil
	}
	return forkGrant{}, fmt.Errorf("label %s: %s: %w", LabelFrom, reason, errdefs.ErrInvalidArgument)
}

// giveBack makes a token valid again after its fork failed.
func (t *forkTokens) giveBack(token string, grant forkGrant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.grants[token] = grant
}

// containerdNamespace is a containerd namespace in the key space of one client.
type containerdNamespace struct{ space, name string }

// namespaceOf returns the namespace in a key of containerd's form, "NAMESPACE/NUMBER/NAME". A key without
// "/" has the name "".
func namespaceOf(stored string) containerdNamespace {
	space, key := metadata.SplitKey(stored)
	name, _, found := strings.Cut(key, "/")
	if !found {
		name = ""
	}
	return containerdNamespace{space, name}
}
