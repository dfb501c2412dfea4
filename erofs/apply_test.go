package erofs

import (
	"archive/tar"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

// What entries do to each other, found by reading containerd's pkg/archive:
// each of these comes out as there, or is left to it.
func TestEntriesThatMeet(t *testing.T) {
	hostcheck.Root(t)
	link := func(target string) func(*tar.Header) { return typ(tar.TypeLink, target) }
	symlink := func(target string) func(*tar.Header) { return typ(tar.TypeSymlink, target) }
	other := mtime(time.Unix(1234567890, 5))
	capabilities := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl := func(mask string) string {
		return "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x05\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00" + mask + "\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	}
	var global rawTar
	record := paxRecord("comment", "x")
	global.entry(tar.TypeReg, "g", 1, "x")
	global.entry(tar.TypeXGlobalHeader, "g", int64(len(record)), record)
	minimal := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"

	for name, tc := range map[string]struct {
		layer []byte
		want  error // nil: as containerd makes it
	}{
		"whiteout behind its file":             {makeTar(t, file{hdr("f"), "x"}, file{hdr(".wh.f"), ""}), ErrUnsupported},
		"whiteout behind its directory":        {makeTar(t, file{hdr("d/f"), "x"}, file{hdr(".wh.d"), ""}), ErrUnsupported},
		"whiteout twice":                       {makeTar(t, file{hdr(".wh.f"), ""}, file{hdr(".wh.f"), ""}), ErrUnsupported},
		"file behind its whiteout":             {makeTar(t, file{hdr(".wh.f"), ""}, file{hdr("f"), "x"}), nil},
		"directory behind its whiteout":        {makeTar(t, file{hdr(".wh.d"), ""}, file{hdr("d/"), ""}, file{hdr("d/f"), "x"}), nil},
		"file below a whiteout":                {makeTar(t, file{hdr(".wh.d"), ""}, file{hdr("d/f"), "x"}), ErrInvalid},
		"hard link to a whiteout":              {makeTar(t, file{hdr(".wh.f"), ""}, file{hdr("l", link("f")), ""}), nil},
		"opaque behind its children":           {makeTar(t, file{hdr("d/f"), "x"}, file{hdr("d/.wh..wh..opq"), ""}), nil},
		"opaque directory made again":          {makeTar(t, file{hdr("d/.wh..wh..opq"), ""}, file{hdr("d/", attr("user.a", "1")), ""}), nil},
		"opaque root":                          {makeTar(t, file{hdr(".wh..wh..opq"), ""}), nil},
		"whiteout of a whiteout":               {makeTar(t, file{hdr(".wh..wh.f"), ""}), nil},
		"whiteout with content":                {makeTar(t, file{hdr(".wh.f"), "content"}, file{hdr("g"), "x"}), nil},
		"directory made again":                 {makeTar(t, file{hdr("d/", attr("user.a", "1"), mode(0o700), ids(5, 6)), ""}, file{hdr("d/f"), "x"}, file{hdr("d/", attr("user.b", "1"), other), ""}), nil},
		"directory and file and directory":     {makeTar(t, file{hdr("d/", attr("user.a", "1")), ""}, file{hdr("d"), "x"}, file{hdr("d/", other), ""}), nil},
		"time of a directory that is gone":     {makeTar(t, file{hdr("d/", other), ""}, file{hdr("d"), "x"}), nil},
		"directory gone without a trace":       {makeTar(t, file{hdr("d/e/"), ""}, file{hdr("d"), "x"}), ErrInvalid},
		"directory that became a symlink":      {makeTar(t, file{hdr("d/", other), ""}, file{hdr("f"), "x"}, file{hdr("d", symlink("f")), ""}), nil},
		"directory that became a dead link":    {makeTar(t, file{hdr("d/"), ""}, file{hdr("d", symlink("gone")), ""}), ErrInvalid},
		"group of an implied directory":        {makeTar(t, file{hdr("d/", mode(0o2755), ids(5, 6)), ""}, file{hdr("d/e/f"), "x"}), nil},
		"hard link over its own inode":         {makeTar(t, file{hdr("a"), "x"}, file{hdr("b", link("a")), ""}, file{hdr("b", link("a"), ids(7, 8)), ""}), nil},
		"hard link drops capabilities":         {makeTar(t, file{hdr("a", typ(tar.TypeFifo, ""), attr(capability, capabilities)), ""}, file{hdr("b", link("a")), ""}), nil},
		"hard link into what it replaces":      {makeTar(t, file{hdr("d/f"), "x"}, file{hdr("d", link("d/f")), ""}), ErrInvalid},
		"global header on a file":              {global.end(), nil},
		"owner -1":                             {makeTar(t, file{hdr("f", ids(math.MaxUint32, 5)), "x"}), ErrUnsupported},
		"minor of more than 20 bits":           {makeTar(t, file{hdr("f", typ(tar.TypeChar, ""), device(1, 1<<20)), ""}), ErrUnsupported},
		"attribute without a name":             {makeTar(t, file{hdr("f", attr("user.", "x")), "x"}), ErrInvalid},
		"capabilities that are none":           {makeTar(t, file{hdr("f", attr(capability, "x")), "x"}), ErrInvalid},
		"ACL with another mode":                {makeTar(t, file{hdr("f", mode(0o660), attr(aclAccess, acl("\x04"))), "x"}), ErrUnsupported},
		"ACL with its mode":                    {makeTar(t, file{hdr("f", mode(0o640), attr(aclAccess, acl("\x04"))), "x"}), nil},
		"ACL that says nothing":                {makeTar(t, file{hdr("f", mode(0o640), attr(aclAccess, minimal)), "x"}), ErrUnsupported},
		"ACL that is none":                     {makeTar(t, file{hdr("f", attr(aclAccess, "x")), "x"}), ErrUnsupported},
		"inherited ACL":                        {makeTar(t, file{hdr("d/", attr(aclDefault, acl("\x04"))), ""}, file{hdr("d/f"), "x"}), ErrUnsupported},
		"symlink target that goes down and up": {makeTar(t, file{hdr("p/q/"), ""}, file{hdr("d/"), ""}, file{hdr("d/a", symlink("/p/q")), ""}, file{hdr("d/l", symlink("a/../t")), ""}, file{hdr("d/l/f"), "x"}), ErrUnsupported},
		"symlink behind symlinks":              {makeTar(t, file{hdr("q/r/"), ""}, file{hdr("p", symlink("q/r")), ""}, file{hdr("l", symlink("p")), ""}, file{hdr("q/r/m", symlink("../z")), ""}, file{hdr("l/m/f"), "x"}), ErrUnsupported},
		"hard link up behind a symlink":        {makeTar(t, file{hdr("q/r/"), ""}, file{hdr("q/f"), "right"}, file{hdr("f"), "wrong"}, file{hdr("s", symlink("q/r")), ""}, file{hdr("l", link("s/../f")), ""}), nil},
		"long whiteout":                        {makeTar(t, file{hdr(".wh." + strings.Repeat("n", 255)), ""}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			ok, err := compareLayer(t, tc.layer)
			if tc.want == nil && err != nil || !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if !ok && !errors.Is(tc.want, ErrUnsupported) {
				t.Error("not as containerd has it")
			}
		})
	}
}
