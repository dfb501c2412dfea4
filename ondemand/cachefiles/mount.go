package cachefiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// bootstrapCookie names the bootstrap of the file system that a blob belongs
// to.
func bootstrapCookie(blob string) string { return blob + ".boot" }

// MountOf is how the file system of an attached blob is mounted.
func MountOf(key ondemand.Key) erofs.Fscache {
	return erofs.Fscache{ID: bootstrapCookie(key.Cookie), Domain: key.Volume, Device: key.Cookie}
}

// bootstrap is the metadata of an attached blob's file system. It is filled on
// demand too, from a file.
type bootstrap struct {
	file *os.File
	blob *ondemand.Blob
}

// Backing implements ondemand.Backer.
func (s *Server) Backing(key ondemand.Key, size, spanSize int64) (ondemand.Backing, error) {
	return newBacking(key, size, spanSize, func() string { return s.cacheFile(key) })
}

// Attach implements ondemand.Transport.
func (s *Server) Attach(b *ondemand.Blob, path string) (err error) {
	boot := &bootstrap{}
	if boot.file, err = os.Open(path); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			boot.file.Close()
		}
	}()
	info, err := boot.file.Stat()
	if err != nil {
		return err
	}
	key := ondemand.Key{Volume: b.Key().Volume, Cookie: bootstrapCookie(b.Key().Cookie)}
	st, err := s.Backing(key, info.Size(), FileSpan)
	if err != nil {
		return err
	}
	boot.blob, err = s.Engine.Open(ondemand.BlobConfig{Key: key, Size: info.Size(), SpanSize: FileSpan, Source: NewFile(boot.file, info.Size()), Backing: st})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.bootstraps[b.Key()] = boot
	s.mu.Unlock()
	s.rebind(b)
	s.rebind(boot.blob)
	return nil
}

// rebind gives a blob the object that the kernel has had open for an earlier
// blob of its key.
func (s *Server) rebind(b *ondemand.Blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.objects {
		if o.of(b.Key()) && o.bound() != nil {
			s.Go(func() {
				if err := s.bind(o, b); err != nil && !errors.Is(err, errClosed) {
					s.Log.Error("the extents of a cache file could not be read", "cookie", o.cookie, "error", err)
				}
			})
		}
	}
}

// Serves implements ondemand.Transport: reads go through the cache for good.
func (s *Server) Serves(*ondemand.Blob) bool { return true }

// Detach implements ondemand.Transport. Here the server itself has the bootstrap
// open; but the kernel has a blob's objects open as long as its file system is
// mounted, and tells when it closes them.
func (s *Server) Detach(b *ondemand.Blob) error {
	s.mu.Lock()
	boot := s.bootstraps[b.Key()]
	s.mu.Unlock()
	if boot == nil {
		return nil
	}
	late := time.After(closeTime)
	for _, blob := range []*ondemand.Blob{b, boot.blob} {
		for _, o := range s.openObjects(blob.Key()) {
			select {
			case <-o.gone:
			case <-late:
				return ondemand.Busy(b, nil)
			}
		}
	}
	s.mu.Lock()
	same := s.bootstraps[b.Key()] == boot
	if same {
		delete(s.bootstraps, b.Key())
	}
	s.mu.Unlock()
	if !same {
		return nil
	}
	return errors.Join(boot.blob.Close(), boot.file.Close())
}

// closeTime is how long Detach waits for the kernel to close objects after the last
// unmount, which it does in a moment, on its own time.
const closeTime = 300 * time.Millisecond

// openObjects are those that the kernel has open for a key.
func (s *Server) openObjects(key ondemand.Key) (list []*object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.objects {
		if o.of(key) {
			list = append(list, o)
		}
	}
	return list
}

// Needed implements ondemand.Transport.
func (s *Server) Needed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.objects) > 0
}

// Domains. Mounts of one domain share their cache. A file system that was
// mounted in a cache that has died, and that a process still has open, keeps its
// name in its domain: then the next domain takes it.
const maxDomains = 10

func nthDomain(base string, n int) string {
	if n == 0 {
		return base
	}
	return base + "." + strconv.Itoa(n)
}

func baseDomain(name string) string {
	base, n, ok := strings.Cut(name, ".")
	if _, err := strconv.Atoi(n); ok && err == nil {
		return base
	}
	return name
}

// Mount implements ondemand.Transport.
func (s *Server) Mount(b *ondemand.Blob, _, target string) error {
	key := b.Key()
	st := b.Backing().(*backing)
	var err error
	for n := range maxDomains {
		f := MountOf(key)
		f.Domain = nthDomain(f.Domain, n)
		err = erofs.MountFscache(f, target)
		if !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		return err
	}
	// The kernel opens the blob's object on its own time. Until then nothing
	// can be filled.
	if err := st.waitBound(s.Context(), 30*time.Second); err != nil {
		return errors.Join(fmt.Errorf("mount of %s: %w", key, err), erofs.Unmount(target))
	}
	return nil
}

// volumes are the directories of a domain in the cache.
func (s *Server) volumes(key ondemand.Key) (dirs []string) {
	for n := range maxDomains {
		// fs/cachefiles/volume.c: "I" and the volume key
		dir := filepath.Join(s.Dir, "cache", "I"+volumePrefix+","+nthDomain(key.Volume, n))
		if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// cacheFile is where the kernel keeps an object, or nothing.
func (s *Server) cacheFile(key ondemand.Key) string {
	for _, dir := range s.volumes(key) {
		// One of 256 directories by a hash of the key; the file has a "D" and
		// a printable key (fs/cachefiles/key.c).
		if found, _ := filepath.Glob(filepath.Join(dir, "@*", "D"+key.Cookie)); len(found) > 0 {
			return found[0]
		}
	}
	return ""
}

// Remove implements ondemand.Backer. The kernel drops an object some time
// after the mount.
func (s *Server) Remove(key ondemand.Key) error {
	var errs []error
	for _, cookie := range []string{key.Cookie, bootstrapCookie(key.Cookie)} {
		errs = append(errs, s.removeObject(ondemand.Key{Volume: key.Volume, Cookie: cookie}))
	}
	return errors.Join(errs...)
}

func (s *Server) removeObject(key ondemand.Key) error {
	for wait := time.Millisecond; ; wait *= 2 {
		path := s.cacheFile(key)
		if path == "" {
			return nil
		}
		err := s.cullFile(path)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY) || wait > time.Second:
			return fmt.Errorf("free %s: %w", path, err)
		}
		select {
		case <-time.After(wait):
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}
