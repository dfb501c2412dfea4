package index

import "github.com/lacuna-snapshotter/lacuna/erofs"

// directories are the attributes of the directories in the layers below: a
// layer that only implies a directory takes them from there, as overlayfs would
// otherwise show its defaults. Above a layer that could not be read they are not
// known, but for those that a layer in between has.
type directories struct {
	known   map[string]erofs.FileInfo
	partial bool
	unknown string // one that was asked for
}

// gap says that the next layer below could not be read.
func (d *directories) gap() { d.known, d.partial = nil, true }

func (d *directories) add(bootstrap []byte) error {
	m, err := erofs.Open(bootstrap)
	if err != nil {
		return err
	}
	if d.known == nil {
		d.known = map[string]erofs.FileInfo{}
	}
	return m.Walk(func(path string, info *erofs.FileInfo) error {
		if info.Mode&erofs.ModeType == erofs.ModeDir {
			d.known[path] = *info
		} else {
			delete(d.known, path) // a layer above that has a directory there starts from its own attributes
		}
		return nil
	})
}

func (d *directories) apply(path string, dir *erofs.Inode) {
	info, ok := d.known[path]
	switch {
	case ok:
		dir.Mode, dir.UID, dir.GID, dir.Mtime = info.Mode, info.UID, info.GID, info.Mtime
		dir.SetXattrs(info.Xattrs)
	case d.partial && d.unknown == "":
		d.unknown = path
	}
}
