package erofs

import (
	"fmt"
	"strings"
)

// resolve returns the components of what a name means in the tree, of which the
// last ones may not exist. It cannot leave the root: ".." stops there and an
// absolute target starts there.
//
// containerd's way (continuity/fs.RootPath) is to replace links from the left,
// to clean the result, and to begin again until nothing changes. Where that is
// not what following links one by one means, it depends on the machine on which
// the layer is unpacked, and the layer is left to it: see follow.
func (t *Tree) resolve(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("%w path: %d bytes, at most %d", ErrInvalid, len(name), maxPath)
	}
	todo := reverse(split(name))
	done := make([]string, 0, len(todo))
	nodes := []*Inode{t.root} // nodes[i] is what done[:i] names, or nil
	links, length := 0, 0
	behind, nested := len(todo), false // what is left of todo behind the first link; a link led to a link
	if err := t.spent.addLookup(len(todo), len(name)); err != nil {
		return nil, err
	}
	for len(todo) > 0 {
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		switch {
		case c == ".":
			continue
		case c == ".." && nested:
			return nil, fmt.Errorf("path %.200q: \"..\" behind symlinks to symlinks %w", name, ErrUnsupported)
		case c == "..":
			if n := len(done); n > 0 {
				length -= len(done[n-1]) + 1
				done, nodes = done[:n-1], nodes[:n]
			}
			continue
		}
		var n *Inode
		if dir := nodes[len(done)]; dir != nil {
			if !dir.isDir() {
				return nil, fmt.Errorf("%w path %.200q: %q is not a directory", ErrInvalid, name, done[len(done)-1])
			}
			n = dir.children[c]
		}
		if n == nil || n.Mode&ModeType != ModeSymlink {
			if length += len(c) + 1; length > maxPath {
				return nil, fmt.Errorf("%w path %.200q: leads to more than %d bytes", ErrInvalid, name, maxPath)
			}
			done, nodes = append(done, c), append(nodes, n)
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("%w path %.200q: too many symlinks", ErrInvalid, name)
		}
		target, err := follow(n.Target)
		if err != nil {
			return nil, fmt.Errorf("path %.200q: %w", name, err)
		}
		if err := t.spent.addLookup(len(target), len(n.Target)); err != nil {
			return nil, err
		}
		if nested && len(target) > 0 && target[0] == ".." {
			return nil, fmt.Errorf("path %.200q: symlink to %.200q behind symlinks to symlinks %w", name, n.Target, ErrUnsupported)
		}
		if links > 1 && len(todo) >= behind {
			nested = true
		} else {
			behind = len(todo)
		}
		if strings.HasPrefix(n.Target, "/") {
			done, nodes, length = done[:0], nodes[:1], 0
		}
		if len(todo)+len(target) > maxPath {
			return nil, fmt.Errorf("%w path %.200q: too long", ErrInvalid, name)
		}
		todo = append(todo, reverse(target)...)
	}
	return done, nil
}

// follow splits a symlink's target. A target that goes down and up again means
// another directory if what it goes down through is a symlink itself: containerd
// cleans such targets before it looks.
func follow(target string) ([]string, error) {
	parts := split(target)
	down := false
	kept := parts[:0]
	for _, c := range parts {
		switch c {
		case ".":
			continue
		case "..":
			if down {
				return nil, fmt.Errorf("symlink to %.200q, which goes down and up again, %w", target, ErrUnsupported)
			}
		default:
			down = true
		}
		kept = append(kept, c)
	}
	return kept, nil
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func reverse(s []string) []string {
	for i, j := 0, len(s)-1; i < j; i, j = i+1, j-1 {
		s[i], s[j] = s[j], s[i]
	}
	return s
}

// mkdirs returns the directory named by resolved components and makes what is
// missing, as containerd's mkparent.
func (t *Tree) mkdirs(components []string) (*Inode, error) {
	n := t.root
	for i, c := range components {
		child := n.children[c]
		if child == nil {
			child = &Inode{Mode: ModeDir | 0o755, implied: true}
			if n.Mode&setGID != 0 {
				child.GID = n.GID // mkdir(2) takes it from such a parent
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
