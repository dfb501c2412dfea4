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
	State      State         `json:"state"` // one of Filling, Complete, Leaving, Evicted, Quarantined
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
	layers := []LayerStatus{}
	for _, d := range l.all() {
		view, ok := l.snapshotOf(d)
		if ok {
			layers = append(layers, view.status())
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.SortFunc(layers, func(a, b LayerStatus) int { return cmp.Compare(a.Layer, b.Layer) })
	fallbacks := slices.SortedFunc(maps.Values(l.fallbacks), func(a, b Fallback) int { return a.Time.Compare(b.Time) })
	return layers, fallbacks
}

func (layer *Layer) status() LayerStatus {
	s := LayerStatus{Layer: layer.digest, State: layer.state}
	if layer.err != nil {
		s.Reason = layer.err.Error()
	}
	f := layer.files
	if f == nil {
		return s
	}
	s.Ref, s.Mountpoint, s.BlobSize, s.Packed = f.Ref, f.target, f.BlobSize, f.Packed
	if usage, err := layer.usage(); err == nil {
		s.Allocated = usage.Size
	}
	if on := layer.serving; on != nil {
		s.Filled = on.blob.Filled()
		if layer.state == Ready {
			s.State = Filling
			if on.blob.Complete() {
				s.State = Complete
			}
		}
	}
	return s
}
