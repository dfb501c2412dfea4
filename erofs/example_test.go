package erofs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"strings"

	"github.com/lacuna-snapshotter/lacuna/erofs"
)

// layer is a layer's tar with one file.
func layer() io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	const text = "print('hello')\n"
	for _, h := range []tar.Header{
		{Name: "app/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "app/main.py", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))},
		{Name: "main", Typeflag: tar.TypeSymlink, Linkname: "app/main.py"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			log.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, text); err != nil {
				log.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}
	return &b
}

// A layer's tar becomes a bootstrap, which is EROFS metadata, and a blob with the bytes
// of files. Data gets the bytes in the order of the blob.
func ExampleReadTar() {
	tree, err := erofs.ReadTar(context.Background(), layer(), erofs.Options{
		Data: func(x erofs.Extent, r io.Reader) error {
			b, err := io.ReadAll(r)
			fmt.Printf("blob at %d: %q\n", x.Blob, b)
			return err
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	bootstrap, err := tree.Encode()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("bootstrap of", len(bootstrap), "bytes, blob of", tree.BlobSize)
	// Output:
	// blob at 0: "print('hello')\n"
	// bootstrap of 4096 bytes, blob of 4096
}

// A bootstrap that came from elsewhere is checked before the kernel mounts it.
func ExampleCheck() {
	tree, err := erofs.ReadTar(context.Background(), layer(), erofs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	bootstrap, err := tree.Encode()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(erofs.Check(bootstrap, tree.BlobSize))
	bootstrap[2000]++ // the superblock's checksum does not agree any more
	fmt.Println(erofs.Check(bootstrap, tree.BlobSize))
	// Output:
	// <nil>
	// invalid EROFS bootstrap: superblock checksum
}

// Walk lists the files of a bootstrap.
func ExampleImage_Walk() {
	tree, err := erofs.ReadTar(context.Background(), layer(), erofs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	bootstrap, err := tree.Encode()
	if err != nil {
		log.Fatal(err)
	}
	image, err := erofs.Open(bootstrap)
	if err != nil {
		log.Fatal(err)
	}
	err = image.Walk(func(path string, f *erofs.FileInfo) error {
		fmt.Println(strings.TrimSpace(fmt.Sprintf("/%s %o %d %s", path, f.Mode, f.Size, f.Target)))
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// / 40755 58
	// /app 40755 46
	// /app/main.py 100644 15
	// /main 120777 11 app/main.py
}
