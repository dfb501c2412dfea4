package layer

import (
	"cmp"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Status is a layer as lacunactl shows it.
type Status struct {
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

// Status lists the layers and the fallbacks, in a fixed order.
func (l *Set) Status() ([]Status, []Fallback) {
	layers := []Status{}
	for _, d := range l.all() {
		view, ok := l.view(d)
		if ok {
			layers = append(layers, view.status())
		}
	}
	slices.SortFunc(layers, func(a, b Status) int { return cmp.Compare(a.Layer, b.Layer) })
	return layers, l.fallbacks.all()
}

func (layer *Layer) status() Status {
	s := Status{Layer: layer.digest, State: layer.state}
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
