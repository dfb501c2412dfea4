package index_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// The index of a layer is made in the store of a node, where the resolver finds it
// for the layer's own directory.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	files := tar.NewWriter(w)
	_ = files.WriteHeader(&tar.Header{Name: "motd", Mode: 0o644, Size: 6})
	_, _ = io.WriteString(files, "hello\n")
	_ = files.Close()
	_ = w.Close()
	layer := digest.FromBytes(packed.Bytes())

	store, err := index.OpenStore(filepath.Join(dir, "node"))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _, err = index.Create(ctx, &packed, store.Path(layer), spans.BuildOptions{}, index.Expect{Layer: layer})
	fmt.Println("create:", err)

	client, err := registry.New(registry.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	own, err := index.OpenStore(filepath.Join(dir, "layer"))
	if err != nil {
		fmt.Println(err)
		return
	}
	resolver := index.NewResolver(client, store, slog.New(slog.DiscardHandler))
	head, err := resolver.Find(ctx, index.Want{Ref: "registry.example/app:1", Layer: layer}, own)
	fmt.Println("find:", err)
	fmt.Println("one file of", head.Map.BlobSize, "bytes in", head.Map.Spans(), "span")
	// Output:
	// create: <nil>
	// find: <nil>
	// one file of 4096 bytes in 1 span
}
