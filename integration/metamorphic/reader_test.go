package metamorphic

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// task is what the driver asks of a reader.
type task struct {
	ID   int64
	Op   string // tree, read, map, open, reread, shut, write, append or untar
	Path string
	Held int64  // the task that has opened what reread and shut are about
	Data []byte // of write and append
	Many int    // write: so many empty files beside
}

// result is a task's outcome.
type result struct {
	ID    int64
	Error string
	Files map[string]fileResult // by path below Path; of one file, by ""
}

// fileResult is what reading a file gave.
type fileResult struct {
	N     int64  // bytes before the error
	Sum   string // their digest
	Error string
}

// serveReader is the main function of a reader process.
func serveReader() error {
	var mu sync.Mutex
	held := map[int64]*os.File{}
	out := json.NewEncoder(os.Stdout)
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		var t task
		if err := in.Decode(&t); err != nil {
			return nil //nolint:nilerr // the driver has gone
		}
		go func() {
			r := result{ID: t.ID}
			if err := r.do(t, held, &mu); err != nil {
				r.Error = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			_ = out.Encode(r)
		}()
	}
}

func (r *result) do(t task, held map[int64]*os.File, mu *sync.Mutex) error {
	switch t.Op {
	case "tree":
		return r.tree(t.Path)
	case "read":
		r.Files = map[string]fileResult{"": readFile(t.Path)}
	case "map":
		r.Files = map[string]fileResult{"": mapFile(t.Path)}
	case "open":
		f, err := os.Open(t.Path)
		if err != nil {
			return err
		}
		mu.Lock()
		held[t.ID] = f
		mu.Unlock()
	case "reread", "shut":
		mu.Lock()
		f := held[t.Held]
		if t.Op == "shut" {
			delete(held, t.Held)
		}
		mu.Unlock()
		if f == nil {
			return errors.New("no such file is held")
		}
		if t.Op == "shut" {
			return f.Close()
		}
		r.Files = map[string]fileResult{"": hash(io.NewSectionReader(f, 0, 1<<40))}
	case "write", "append":
		return write(t)
	case "untar":
		return untar(t.Path, t.Data)
	default:
		return fmt.Errorf("no task %q", t.Op)
	}
	return nil
}

func (r *result) tree(dir string) error {
	r.Files = map[string]fileResult{}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() {
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			r.Files[rel] = readFile(path)
		}
		return nil
	})
}

func readFile(path string) fileResult {
	f, err := os.Open(path)
	if err != nil {
		return fileResult{Error: err.Error()}
	}
	defer f.Close()
	return hash(f)
}

func hash(from io.Reader) (r fileResult) {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{from}, make([]byte, 16<<10))
	r = fileResult{N: n, Sum: hex.EncodeToString(h.Sum(nil))}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// mapFile reads through a mapping, page by page.
func mapFile(path string) (r fileResult) {
	f, err := os.Open(path)
	if err != nil {
		return fileResult{Error: err.Error()}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fileResult{Error: err.Error()}
	}
	h := sha256.New()
	if info.Size() == 0 {
		return hash(f)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fileResult{Error: err.Error()}
	}
	defer unix.Munmap(m)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	page := make([]byte, 4096)
	defer func() {
		if p := recover(); p != nil {
			r.Error = fmt.Sprint(p)
		}
		r.Sum = hex.EncodeToString(h.Sum(nil))
	}()
	for off := 0; off < len(m); off += len(page) {
		n := copy(page, m[off:])
		h.Write(page[:n])
		r.N += int64(n)
	}
	return r
}

func write(t task) error {
	if err := os.MkdirAll(filepath.Dir(t.Path), 0o755); err != nil {
		return err
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	if t.Op == "append" {
		flags = os.O_WRONLY | os.O_APPEND
	}
	f, err := os.OpenFile(t.Path, flags, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(t.Data); err != nil {
		f.Close()
		return err
	}
	for i := range t.Many {
		if err := os.WriteFile(fmt.Sprintf("%s.%d", t.Path, i), nil, 0o644); err != nil {
			return err
		}
	}
	return f.Close()
}

func untar(dir string, b []byte) error {
	tr := tar.NewReader(bytesReader(b))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			continue
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
}

// reader is the driver's end of a reader process.
type reader struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	ended chan struct{}

	mu      sync.Mutex
	next    int64
	waiting map[int64]chan result
}

func startReader() (*reader, error) {
	r := &reader{ended: make(chan struct{}), waiting: map[int64]chan result{}}
	r.cmd = exec.Command("/proc/self/exe")
	r.cmd.Env = append(os.Environ(), roleVariable+"=reader")
	r.cmd.Stderr = os.Stderr
	var err error
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(r.ended)
		d := json.NewDecoder(bufio.NewReader(out))
		for {
			var a result
			if d.Decode(&a) != nil {
				break
			}
			r.mu.Lock()
			r.waiting[a.ID] <- a
			delete(r.waiting, a.ID)
			r.mu.Unlock()
		}
		_ = r.cmd.Wait()
	}()
	return r, nil
}

// begin gives the reader a task; the outcome comes to the channel.
func (r *reader) begin(t task) (id int64, outcome chan result, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	t.ID = r.next
	outcome = make(chan result, 1)
	r.waiting[t.ID] = outcome
	b, err := json.Marshal(t)
	if err != nil {
		return 0, nil, err
	}
	_, err = r.in.Write(append(b, '\n'))
	return t.ID, outcome, err
}

var errHang = errors.New("it hangs")

func (r *reader) wait(outcome chan result) (result, error) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case a := <-outcome:
		if a.Error != "" {
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-r.ended:
		return result{}, errors.New("the reader process has died")
	case <-t.C:
		return result{}, errHang
	}
}

func (r *reader) run(t task) (result, error) {
	_, outcome, err := r.begin(t)
	if err != nil {
		return result{}, err
	}
	return r.wait(outcome)
}

func (r *reader) kill() {
	_ = r.cmd.Process.Kill()
	<-r.ended
}
