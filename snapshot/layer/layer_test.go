package layer_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// look is what a node has of an image's layer.
func look(t *testing.T, n *snapshottest.Node, packed []byte) layer.Layer {
	t.Helper()
	l, ok := n.Layers.Look(digest.FromBytes(packed))
	if !ok {
		t.Fatal("the layer is not on the node")
	}
	return l
}
