package snapshot

import (
	"strings"

	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
)

// labelTarget is the name that containerd wants the committed snapshot to have
// (core/unpack/unpacker.go, labelSnapshotRef).
const labelTarget = "containerd.io/snapshot.ref"

// Target is a layer as an image pull names it.
type Target struct {
	Ref      string        // image reference
	Manifest digest.Digest // of the image; may be empty
	Layer    digest.Digest
	Above    []digest.Digest // the image's layers from this one up, as far as the label held them
}

// extraction is a Prepare for a layer.
type extraction struct {
	Target
	name string // the wanted chain ID
}

// parseExtraction reads the labels of a Prepare. ok is false where they do not
// name a layer: then it is an ordinary Prepare.
func parseExtraction(labels map[string]string) (want extraction, ok bool) {
	want.name = labels[labelTarget]
	want.Ref = labels[snapshotters.TargetRefLabel]
	want.Layer = digest.Digest(labels[snapshotters.TargetLayerDigestLabel])
	if want.name == "" || want.Layer.Validate() != nil {
		return want, false
	}
	if d := digest.Digest(labels[snapshotters.TargetManifestDigestLabel]); d.Validate() == nil {
		want.Manifest = d
	}
	for d := range strings.SplitSeq(labels[snapshotters.TargetImageLayersLabel], ",") {
		if d := digest.Digest(d); d.Validate() == nil {
			want.Above = append(want.Above, d)
		}
	}
	return want, true
}
