package predict

import (
	"bytes"
	"io"
	"path"
	"strings"
)

// Command is what an image runs, from its configuration.
type Command struct {
	Args []string // entrypoint and command
	Env  []string
	Dir  string
}

// Range is a part of a file.
type Range struct {
	File     File
	Off, Len int64
}

// Reader opens a file of the tree for reading at any offset.
type Reader func(f File) io.ReaderAt

// Limit bounds a prediction, in bytes of files.
type Limit struct {
	Bytes int64 // all ranges together
	Files int
}

// DefaultLimit is above what starts of large programs read.
var DefaultLimit = Limit{Bytes: 256 << 20, Files: 5000}

// Start predicts what running the command reads first.
func Start(t *Tree, open Reader, c Command, limit Limit) []Range {
	p := &predictor{tree: t, open: open, limit: limit, seen: map[string]bool{}, env: map[string]string{}}
	for _, kv := range c.Env {
		k, v, _ := strings.Cut(kv, "=")
		p.env[k] = v
	}
	p.dir = path.Join("/", c.Dir)
	// The runtime looks users up before it starts the command.
	p.whole("/etc/passwd")
	p.whole("/etc/group")
	p.command(c.Args, 0)
	return p.ranges
}

type predictor struct {
	tree   *Tree
	open   Reader
	limit  Limit
	env    map[string]string
	dir    string
	seen   map[string]bool // real paths taken
	ranges []Range
	bytes  int64
	python *interpreter
}

// add takes part of a file into the prediction.
func (p *predictor) add(f File, off, n int64) {
	n = min(n, f.Size-off)
	if n <= 0 || p.bytes+n > p.limit.Bytes {
		return
	}
	p.bytes += n
	p.ranges = append(p.ranges, Range{f, off, n})
}

// take reports whether a file is new, and takes it.
func (p *predictor) take(real string) bool {
	if p.seen[real] || len(p.seen) >= p.limit.Files {
		return false
	}
	p.seen[real] = true
	return true
}

// whole takes a file in full.
func (p *predictor) whole(name string) {
	if real, f, ok := p.tree.regular(name); ok && p.take(real) {
		p.add(f, 0, f.Size)
	}
}

// read returns a file's content, or nil. It bounds what hostile images make us
// read.
func (p *predictor) read(f File) []byte {
	const most = 4 << 20
	if f.Size > most {
		return nil
	}
	b := make([]byte, f.Size)
	if _, err := p.open(f).ReadAt(b, 0); err != nil && err != io.EOF {
		return nil
	}
	return b
}

// command predicts a program with its arguments.
func (p *predictor) command(args []string, depth int) {
	if len(args) == 0 || depth > 4 {
		return
	}
	name := p.lookPath(args[0])
	real, f, ok := p.tree.regular(name)
	if !ok {
		return
	}
	head := make([]byte, 256)
	n, _ := p.open(f).ReadAt(head, 0)
	if line, ok := bytes.CutPrefix(head[:n], []byte("#!")); ok {
		// A script: its interpreter runs with its name.
		line, _, _ = bytes.Cut(line, []byte("\n"))
		words := strings.Fields(string(line))
		p.whole(name)
		if len(words) > 0 && path.Base(words[0]) == "env" {
			words = words[1:]
		}
		p.command(append(append(words, "/"+real), args[1:]...), depth+1)
		return
	}
	p.program(name)
	base := path.Base(real)
	switch {
	case strings.HasPrefix(base, "python"):
		p.runPython(real, args[1:])
	case base == "sh" || base == "dash" || base == "bash" || base == "busybox" || base == "tini" || base == "dumb-init" || base == "env":
		p.command(wrapped(args[1:]), depth+1)
	}
}

// wrapped is the command that a shell or an init was given to run.
func wrapped(args []string) []string {
	for i, a := range args {
		switch {
		case a == "-c" && i+1 < len(args):
			line := strings.Fields(args[i+1])
			if len(line) > 0 && line[0] == "exec" {
				line = line[1:]
			}
			return line
		case !strings.HasPrefix(a, "-") && !strings.Contains(a, "="):
			return args[i:]
		}
	}
	return nil
}

func (p *predictor) lookPath(name string) string {
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join(p.dir, name)
		}
		return name
	}
	dirs := p.env["PATH"]
	if dirs == "" {
		dirs = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	for dir := range strings.SplitSeq(dirs, ":") {
		if _, _, ok := p.tree.regular(path.Join(dir, name)); ok {
			return path.Join(dir, name)
		}
	}
	return ""
}
