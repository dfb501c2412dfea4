package main

import (
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// Conversions from the daemon's types to those of the status socket. Empty lists are
// [] in JSON, not null.

func registriesOf(troubles []registry.Trouble) []statusapi.Registry {
	list := []statusapi.Registry{}
	for _, t := range troubles {
		list = append(list, statusapi.Registry(t))
	}
	return list
}

func unservedOf(unserved []layer.Unserved) []statusapi.Unserved {
	list := []statusapi.Unserved{}
	for _, u := range unserved {
		list = append(list, statusapi.Unserved{Layer: u.Layer, Transport: u.Transport, Found: u.Found, Reads: u.Reads(), Snapshots: u.Snapshots})
	}
	return list
}

func layersOf(layers []layer.Status, fallbacks []layer.Fallback) statusapi.Layers {
	l := statusapi.Layers{Layers: []statusapi.Layer{}, Fallbacks: []statusapi.Fallback{}}
	for _, s := range layers {
		l.Layers = append(l.Layers, statusapi.Layer{
			Layer: s.Layer, Ref: s.Ref, State: string(s.State), Reason: s.Reason, Mountpoint: s.Mountpoint,
			BlobSize: s.BlobSize, Filled: s.Filled, Packed: s.Packed, Allocated: s.Allocated,
		})
	}
	for _, f := range fallbacks {
		l.Fallbacks = append(l.Fallbacks, statusapi.Fallback(f))
	}
	return l
}
