package registry_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// A range of a layer is read from the repository of an image.
func Example() {
	const layer = "the bytes of a layer"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(layer))
	}))
	defer server.Close()

	client, err := registry.New(registry.Options{PlainHTTP: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	repo, tag, err := client.Repository(strings.TrimPrefix(server.URL, "http://") + "/library/app:1.2")
	if err != nil {
		fmt.Println(err)
		return
	}
	content := repo.Content(v1.Descriptor{Digest: digest.FromString(layer), Size: int64(len(layer))})
	p := make([]byte, 5)
	err = content.ReadAt(context.Background(), p, 4)
	fmt.Println(tag, string(p), err)
	// Output: 1.2 bytes <nil>
}
