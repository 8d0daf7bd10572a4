package diff

import "context"

// ListUnproved is List by the inodes whose records changed, without accounting for blocks. Tests
// must detect its omissions.
func ListUnproved(ctx context.Context, lower, upper Volume, changed []Range) (Listing, error) {
	n, err := openInodes(lower, upper, changed)
	if err != nil {
		return Listing{}, err
	}
	if err := n.records(ctx); err != nil {
		return Listing{}, err
	}
	return n.list(ctx, changed)
}
