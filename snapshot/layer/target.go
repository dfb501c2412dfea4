package layer

import "github.com/opencontainers/go-digest"

// Target is a layer as an image pull names it.
type Target struct {
	Ref      string        // image reference
	Manifest digest.Digest // of the image; may be empty
	Layer    digest.Digest
	Above    []digest.Digest // the image's layers from this one up, as far as the label held them
}

// Indexable reports whether an index can name a layer of this digest: one of SHA-256.
func Indexable(d digest.Digest) bool {
	return d.Validate() == nil && d.Algorithm() == digest.SHA256
}
