package predict

import (
	"path"
	"strings"

	"github.com/lacuna-snapshotter/lacuna/erofs"
)

// File is one name of the merged tree.
type File struct {
	Layer int // number of the layer that it is in
	*erofs.FileInfo
}

// Tree is an image's layers laid over each other, as overlayfs shows them, but
// for opaque directories.
type Tree struct {
	files    map[string]File     // by path without a leading slash
	children map[string][]string // names in a directory
}

// NewTree merges bootstraps, base first.
func NewTree(bootstraps [][]byte) (*Tree, error) {
	t := &Tree{files: map[string]File{}, children: map[string][]string{}}
	for i, b := range bootstraps {
		image, err := erofs.Open(b)
		if err != nil {
			return nil, err
		}
		err = image.Walk(func(p string, info *erofs.FileInfo) error {
			if info.Mode&erofs.ModeType == erofs.ModeChar && info.Rdev == 0 {
				delete(t.files, p) // a whiteout
				return nil
			}
			if _, ok := t.files[p]; !ok && p != "" {
				dir := parentOf(p)
				t.children[dir] = append(t.children[dir], path.Base(p))
			}
			t.files[p] = File{i, info}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

// Resolve follows symlinks and returns the file and its real path. ok is false
// where it leads to nothing.
func (t *Tree) Resolve(p string) (real string, f File, ok bool) {
	todo := strings.Split(strings.Trim(path.Clean("/"+p), "/"), "/")
	done := ""
	for steps := 0; len(todo) > 0; steps++ {
		if steps > 400 {
			return "", File{}, false
		}
		next := path.Join(done, todo[0])
		todo = todo[1:]
		f, ok := t.files[next]
		if !ok {
			return "", File{}, false
		}
		if f.Mode&erofs.ModeType != erofs.ModeSymlink {
			done = next
			continue
		}
		target := f.Target
		if !strings.HasPrefix(target, "/") {
			target = "/" + parentOf(next) + "/" + target
		}
		todo = append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), todo...)
		done = ""
	}
	f, ok = t.files[done]
	return done, f, ok
}

// regular is Resolve for a file with content.
func (t *Tree) regular(p string) (string, File, bool) {
	real, f, ok := t.Resolve(p)
	return real, f, ok && f.Mode&erofs.ModeType == erofs.ModeRegular && f.Size > 0
}

func (t *Tree) isDir(p string) bool {
	_, f, ok := t.Resolve(p)
	return ok && f.Mode&erofs.ModeType == erofs.ModeDir
}

// names lists what is in a directory.
func (t *Tree) names(dir string) []string {
	real, _, ok := t.Resolve(dir)
	if !ok {
		return nil
	}
	return t.children[real]
}
