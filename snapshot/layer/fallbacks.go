package layer

import (
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/continuity"
	"github.com/opencontainers/go-digest"
)

// Fallback says why a layer was left to containerd's ordinary unpack.
type Fallback struct {
	Layer  digest.Digest `json:"layer"`
	Ref    string        `json:"image"`
	Time   time.Time     `json:"time"`
	Reason string        `json:"reason"`
}

// maxFallbacks bounds what is kept; the oldest goes first.
const maxFallbacks = 1000

// fallbacks are the last reasons, by layer, in a file that outlives the daemon: an
// array of Fallback in JSON. Only people need it, so a failure to write it is logged
// and nothing else.
type fallbacks struct {
	path string
	log  *slog.Logger

	mu   sync.Mutex
	list map[digest.Digest]Fallback
}

// openFallbacks reads the file, if there is one.
func openFallbacks(path string, log *slog.Logger) *fallbacks {
	x := &fallbacks{path: path, log: log, list: map[digest.Digest]Fallback{}}
	b, err := os.ReadFile(path)
	var list []Fallback
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("the reasons why layers were left to containerd could not be read and are lost", "file", path, "error", err)
	}
	for _, f := range list[max(0, len(list)-maxFallbacks):] {
		x.list[f.Layer] = f
	}
	return x
}

// add notes why a layer is left to containerd, and logs it.
func (x *fallbacks) add(t Target, reason error) {
	x.log.Warn("layer left to containerd's unpack", "layer", t.Layer, "image", t.Ref, "reason", reason)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.list[t.Layer] = Fallback{t.Layer, t.Ref, time.Now().UTC(), reason.Error()}
	if len(x.list) > maxFallbacks {
		delete(x.list, x.sorted()[0].Layer)
	}
	x.write()
}

// LeftToContainerd notes that a layer is left to containerd's ordinary unpack, and why.
func (l *Set) LeftToContainerd(t Target, reason error) { l.fallbacks.add(t, reason) }

// drop forgets a layer that is served now.
func (x *fallbacks) drop(layer digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.list[layer]; ok {
		delete(x.list, layer)
		x.write()
	}
}

// all lists the fallbacks, the oldest first.
func (x *fallbacks) all() []Fallback {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.sorted()
}

func (x *fallbacks) sorted() []Fallback {
	list := slices.AppendSeq([]Fallback{}, maps.Values(x.list))
	slices.SortFunc(list, func(a, b Fallback) int { return a.Time.Compare(b.Time) })
	return list
}

func (x *fallbacks) write() {
	b, err := json.Marshal(x.sorted())
	if err == nil {
		err = continuity.AtomicWriteFile(x.path, b, 0o600)
	}
	if err != nil {
		x.log.Warn("the reasons why layers were left to containerd could not be written; a restart loses them", "file", x.path, "error", err)
	}
}
