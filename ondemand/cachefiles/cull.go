package cachefiles

import (
	"cmp"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cullWhenAsked frees cold objects as long as the kernel asks for it.
func (s *Server) cullWhenAsked() {
	for range s.cull {
		freed, busy := s.cullCold()
		s.Log.Info("cold objects were culled", "objects", freed, "in use", busy)
	}
}

// cullCold culls objects that nothing mounts, the coldest first, until the
// kernel has enough.
func (s *Server) cullCold() (freed, busy int) {
	type cold struct {
		path string
		used time.Time
	}
	var list []cold
	err := filepath.WalkDir(filepath.Join(s.Dir, "cache"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasPrefix(filepath.Base(filepath.Dir(path)), "@") {
			return nil //nolint:nilerr // what goes away meanwhile needs no culling
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			list = append(list, cold{path, time.Unix(st.Atim.Unix())})
		}
		return nil
	})
	if err != nil {
		s.Log.Error("cold objects could not be listed", "error", err)
	}
	slices.SortFunc(list, func(a, b cold) int {
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.path, b.path))
	})
	for _, c := range list {
		if s.Context().Err() != nil || !s.kernel.culling() {
			break
		}
		switch err := s.cullFile(c.path); {
		case err == nil:
			freed++
		case errors.Is(err, unix.EBUSY):
			busy++
		case !errors.Is(err, unix.ENOENT):
			s.Log.Error("an object could not be culled", "object", c.path, "error", err)
		}
	}
	return freed, busy
}

// cullFile asks the kernel to remove an object; EBUSY says that it is in use.
func (s *Server) cullFile(path string) error {
	return s.kernel.commandIn(filepath.Dir(path), "cull "+filepath.Base(path))
}
