package snapshot

import (
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// Labels of a lazy snapshot: the layer that it stands for, and where it came from,
// so that the layer can be rebuilt. Only the snapshotter sets them: what a client passes
// under these names is dropped. containerd passes the annotations of an image's layers
// that begin with containerd.io/snapshot/ on to the snapshotter, so ours do not begin
// so.
const (
	labelLayer    = "lacuna/layer"
	labelImage    = "lacuna/image"
	labelManifest = "lacuna/manifest"
)

// labelRemapped marks an ordinary committed snapshot whose files have the owners of
// the host: see isRemapped. Only the snapshotter sets it, too.
const labelRemapped = "lacuna/remapped"

// extraction is a Prepare for a layer.
type extraction struct {
	layer.Target
	name string // the wanted chain ID
}

// parseExtraction reads the labels of a Prepare. ok is false where they do not name a
// layer: it is an ordinary Prepare then.
func parseExtraction(labels map[string]string) (want extraction, ok bool) {
	want.name = labels[snapshots.LabelSnapshotRef]
	want.Ref = labels[snapshotters.TargetRefLabel]
	want.Layer = digest.Digest(labels[snapshotters.TargetLayerDigestLabel])
	if want.name == "" || !layer.Indexable(want.Layer) {
		return want, false
	}
	if d := digest.Digest(labels[snapshotters.TargetManifestDigestLabel]); d.Validate() == nil {
		want.Manifest = d
	}
	for d := range strings.SplitSeq(labels[snapshotters.TargetImageLayersLabel], ",") {
		if d := digest.Digest(d); layer.Indexable(d) {
			want.Above = append(want.Above, d)
		}
	}
	return want, true
}

// lazyTarget reads the labels of a committed snapshot. ok is false for an ordinary
// snapshot.
func lazyTarget(labels map[string]string) (t layer.Target, ok bool) {
	t = layer.Target{Ref: labels[labelImage], Manifest: digest.Digest(labels[labelManifest]), Layer: digest.Digest(labels[labelLayer])}
	return t, layer.Indexable(t.Layer)
}

// ordinary is the last option of a snapshot that is not lazy.
func ordinary(info *snapshots.Info) error {
	info.Labels = without(info.Labels)
	return nil
}

// remapped is the last option of a snapshot whose files have the owners of the host.
func remapped(info *snapshots.Info) error {
	info.Labels = without(info.Labels)
	info.Labels[labelRemapped] = "true"
	return nil
}

// lazy is the last option of a snapshot that stands for a layer.
func lazy(t layer.Target) snapshots.Opt {
	return func(info *snapshots.Info) error {
		info.Labels = without(info.Labels)
		info.Labels[labelLayer], info.Labels[labelImage], info.Labels[labelManifest] = t.Layer.String(), t.Ref, t.Manifest.String()
		return nil
	}
}

// without copies labels, but for our own.
func without(labels map[string]string) map[string]string {
	copied := maps.Clone(labels)
	if copied == nil {
		copied = map[string]string{}
	}
	maps.DeleteFunc(copied, func(k, _ string) bool { return isOurs(k) })
	return copied
}

func isOurs(label string) bool {
	return label == labelLayer || label == labelImage || label == labelManifest || label == labelRemapped
}
