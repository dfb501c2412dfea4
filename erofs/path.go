package erofs

import (
	"fmt"
	"strings"
)

// resolve returns the components of the path that a name leads to in the tree; the last
// ones may not exist. It cannot leave the root: ".." stops there and an absolute target
// starts there. The result is valid until the next call.
//
// containerd (continuity/fs.RootPath) replaces links from the left, cleans the result,
// and begins again until it does not change. Where that differs from following the
// links one by one, the result depends on the machine on which the layer is unpacked,
// and the layer is left to containerd.
func (t *Tree) resolve(name string) ([]string, error) {
	p := &t.lookup
	p.reset(t.root, name)
	for {
		if len(p.todo[0]) > maxPath {
			return nil, fmt.Errorf("%w path: %d bytes, at most %d", ErrInvalid, len(name), maxPath)
		}
		c, fromLink, ok := p.next()
		if !ok {
			return p.done, nil
		}
		if err := t.spent.addLookup(len(c)); err != nil {
			return nil, err
		}
		n, err := p.step(c)
		switch {
		case err == nil && n != nil:
			err = p.follow(n.Target, fromLink)
		case err == nil && p.length > maxPath:
			err = fmt.Errorf("%w target of more than %d bytes", ErrInvalid, maxPath)
		}
		if err != nil {
			return nil, fmt.Errorf("path %.200q: %w", name, err)
		}
	}
}

// lookup is a name being resolved.
type lookup struct {
	todo   []string // what is left of the name and, after it, of symlinks' targets
	done   []string
	nodes  []*Inode // nodes[i] is the inode of done[:i], or nil
	length int      // bytes of done
	links  int
	nested bool // a symlink led to a symlink
}

func (p *lookup) reset(root *Inode, name string) {
	*p = lookup{todo: append(p.todo[:0], name), done: p.done[:0], nodes: append(p.nodes[:0], root)}
}

// next takes the first component of what is left.
func (p *lookup) next() (c string, fromLink, ok bool) {
	for {
		last := len(p.todo) - 1
		rest := strings.TrimLeft(p.todo[last], "/")
		if rest == "" {
			if last == 0 {
				return "", false, false
			}
			p.todo = p.todo[:last]
			continue
		}
		c, p.todo[last], _ = strings.Cut(rest, "/")
		return c, last > 0, true
	}
}

// step resolves one component. It returns the inode if that is a symlink.
func (p *lookup) step(c string) (link *Inode, err error) {
	switch {
	case c == ".":
		return nil, nil
	case c == ".." && p.nested && len(p.todo) == 1:
		return nil, fmt.Errorf("\"..\" after symlinks to symlinks %w", ErrUnsupported)
	case c == "..":
		if n := len(p.done); n > 0 {
			p.length -= len(p.done[n-1]) + 1
			p.done, p.nodes = p.done[:n-1], p.nodes[:n]
		}
		return nil, nil
	}
	var n *Inode
	if dir := p.nodes[len(p.done)]; dir != nil {
		if !dir.isDir() {
			return nil, fmt.Errorf("%w: %q is not a directory", ErrInvalid, p.done[len(p.done)-1])
		}
		n = dir.children[c]
	}
	if n != nil && n.Mode&ModeType == ModeSymlink {
		return n, nil
	}
	p.length += len(c) + 1
	p.done, p.nodes = append(p.done, c), append(p.nodes, n)
	return nil, nil
}

// follow puts a symlink's target before the components that are left. A target that
// goes down and up again ("a/../b") is refused: if "a" is a symlink, it leads to another
// directory than containerd's, which cleans targets first. For the same reason ".."
// after a symlink to a symlink is refused.
func (p *lookup) follow(target string, fromLink bool) error {
	if p.links++; p.links > maxLinks {
		return fmt.Errorf("%w: too many symlinks", ErrInvalid)
	}
	down := false
	for c := range strings.SplitSeq(target, "/") {
		if c == ".." && (down || p.nested) {
			return fmt.Errorf("symlink to %.200q %w", target, ErrUnsupported)
		}
		down = down || c != "" && c != "." && c != ".."
	}
	p.nested = p.nested || fromLink
	if strings.HasPrefix(target, "/") {
		p.done, p.nodes, p.length = p.done[:0], p.nodes[:1], 0
	}
	p.todo = append(p.todo, target)
	return nil
}

// mkdirs returns the directory that resolved components name, and creates those that
// are missing, as containerd's mkparent does.
func (t *Tree) mkdirs(components []string) (*Inode, error) {
	n := t.root
	for i, c := range components {
		child := n.children[c]
		if child == nil {
			child = &Inode{Mode: ModeDir | 0o755, implied: true}
			if n.Mode&setGID != 0 {
				child.GID = n.GID // mkdir(2) takes it from a parent with set-group-ID
			}
			if err := t.spent.addImplied(); err != nil {
				return nil, err
			}
			if t.opts.Implied != nil {
				t.opts.Implied(strings.Join(components[:i+1], "/"), child)
			}
			if err := t.add(n, c, child); err != nil {
				return nil, err
			}
		}
		if !child.isDir() {
			return nil, fmt.Errorf("%w path %.200q: %q is not a directory", ErrInvalid, strings.Join(components, "/"), c)
		}
		n = child
	}
	return n, nil
}
