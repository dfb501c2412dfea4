package snapshot

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Fallback says why a layer was left to containerd's ordinary unpack.
type Fallback struct {
	Layer  digest.Digest `json:"layer"`
	Ref    string        `json:"image"`
	Time   time.Time     `json:"time"`
	Reason string        `json:"reason"`
}

// LayerStatus is what can be told about a layer.
type LayerStatus struct {
	Layer      digest.Digest `json:"layer"`
	Ref        string        `json:"image"`
	State      string        `json:"state"` // "filling", "complete", "evicted" or "quarantined"
	Reason     string        `json:"reason,omitempty"`
	Mountpoint string        `json:"mountpoint"`
	BlobSize   int64         `json:"blobSize"` // bytes of files
	Filled     int64         `json:"filled"`   // bytes of these on the node
	Packed     int64         `json:"layerSize"`
	Allocated  int64         `json:"allocated"` // bytes of disk
}

// maxFallbacks bounds what is kept; the oldest goes first.
const maxFallbacks = 1000

func (l *Layers) fallBack(want extraction, err error) {
	l.Log.Warn("layer is left to containerd's unpack", "layer", want.Layer, "image", want.Ref, "reason", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.fallbacks) >= maxFallbacks {
		oldest := slices.MinFunc(slices.Collect(maps.Values(l.fallbacks)), func(a, b Fallback) int { return a.Time.Compare(b.Time) })
		delete(l.fallbacks, oldest.Layer)
	}
	l.fallbacks[want.Layer] = Fallback{want.Layer, want.Ref, time.Now().UTC(), err.Error()}
}

// Status lists the layers and the fallbacks, in a fixed order.
func (l *Layers) Status() ([]LayerStatus, []Fallback) {
	l.mu.Lock()
	defer l.mu.Unlock()
	layers := []LayerStatus{}
	for d, layer := range l.layers {
		s := LayerStatus{
			Layer: d, Ref: layer.state.Ref, State: "filling", Mountpoint: layer.target,
			BlobSize: layer.state.BlobSize, Packed: layer.state.Packed,
		}
		if usage, err := layer.usage(); err == nil {
			s.Allocated = usage.Size
		}
		switch {
		case layer.err != nil:
			s.State, s.Reason = "quarantined", layer.err.Error()
		case layer.blob == nil:
			s.State = "evicted"
		case layer.blob.Complete():
			s.State = "complete"
		}
		if layer.blob != nil {
			s.Filled = layer.blob.Filled()
		}
		layers = append(layers, s)
	}
	slices.SortFunc(layers, func(a, b LayerStatus) int { return cmp.Compare(a.Layer, b.Layer) })
	fallbacks := slices.SortedFunc(maps.Values(l.fallbacks), func(a, b Fallback) int { return a.Time.Compare(b.Time) })
	return layers, fallbacks
}
