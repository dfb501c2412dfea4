package snapshot

import (
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
)

// Labels of a lazy snapshot: the layer that it stands for, and where it came from,
// so that the layer can be made again. They are ours alone: what a client passes
// under these names is dropped. containerd gives a snapshotter those annotations of
// an image's layers that begin with containerd.io/snapshot/, so ours do not.
const (
	labelLayer    = "lacuna/layer"
	labelImage    = "lacuna/image"
	labelManifest = "lacuna/manifest"
)

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
	want.name = labels[snapshots.LabelSnapshotRef]
	want.Ref = labels[snapshotters.TargetRefLabel]
	want.Layer = digest.Digest(labels[snapshotters.TargetLayerDigestLabel])
	if want.name == "" || !isSHA256(want.Layer) {
		return want, false
	}
	if d := digest.Digest(labels[snapshotters.TargetManifestDigestLabel]); d.Validate() == nil {
		want.Manifest = d
	}
	for d := range strings.SplitSeq(labels[snapshotters.TargetImageLayersLabel], ",") {
		if d := digest.Digest(d); isSHA256(d) {
			want.Above = append(want.Above, d)
		}
	}
	return want, true
}

// isSHA256 holds for the digests that layers are indexed by.
func isSHA256(d digest.Digest) bool {
	return d.Validate() == nil && d.Algorithm() == digest.SHA256
}

// lazyTarget reads the labels of a committed snapshot. ok is false for an ordinary
// one.
func lazyTarget(labels map[string]string) (t Target, ok bool) {
	t = Target{Ref: labels[labelImage], Manifest: digest.Digest(labels[labelManifest]), Layer: digest.Digest(labels[labelLayer])}
	return t, isSHA256(t.Layer)
}

// ordinary is the last option of a snapshot that is not lazy.
func ordinary(info *snapshots.Info) error {
	info.Labels = without(info.Labels)
	return nil
}

// lazy is the last option of a snapshot that stands for a layer.
func lazy(t Target) snapshots.Opt {
	return func(info *snapshots.Info) error {
		info.Labels = without(info.Labels)
		info.Labels[labelLayer], info.Labels[labelImage], info.Labels[labelManifest] = t.Layer.String(), t.Ref, t.Manifest.String()
		return nil
	}
}

// without copies labels without ours.
func without(labels map[string]string) map[string]string {
	copied := maps.Clone(labels)
	if copied == nil {
		copied = map[string]string{}
	}
	maps.DeleteFunc(copied, func(k, _ string) bool { return isOurs(k) })
	return copied
}

func isOurs(label string) bool {
	return label == labelLayer || label == labelImage || label == labelManifest
}
