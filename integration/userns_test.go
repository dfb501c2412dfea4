package integration

import (
	"archive/tar"
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// mappings of user namespaces, as ctr run takes them for user and group IDs.
var mappings = []struct {
	name   string
	ranges []string
}{
	{"100000", []string{"0:100000:65536"}},
	{"200000", []string{"0:200000:65536"}},
	// Root stays root: the owner of a root directory does not tell whether its IDs
	// are mapped.
	{"root", []string{"0:0:1", "1:300001:65535"}},
}

// usernsRefs are images of package images/probe.
type usernsRefs struct {
	one   string // one lazy layer
	many  string // three
	mixed string // two of these, and one that containerd unpacks
}

func (r usernsRefs) all() []string { return []string{r.one, r.many, r.mixed} }

// pushProbe pushes the images and makes the first two's indexes.
func (p *parts) pushProbe(t *testing.T) usernsRefs {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	content, err := p.env.Compile(ctx, "probe")
	if err != nil {
		t.Fatal(err)
	}
	file, folder := harness.File, harness.Folder
	base := pack(t, filepath.Join(dir, "base"),
		folder("dir", 0o2775, 1000, 2000),
		file("dir/file", 0o644, 1000, 2000, "file"),
		file("dir/gone", 0o644, 33, 33, "gone"),
		file("dir/under", 0o644, 33, 33, "under"),
		file("owned", 0o644, 1000, 65534, "owned"),
		file("secret", 0o600, 0, 0, "secret"),
		file("plain", 0o755, 0, 0, string(content)),
		harness.Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "probe", Linkname: "plain", Mode: 0o755}},
		file("suid-root", 0o4755, 0, 0, string(content)),
		file("suid-user", 0o6755, 1000, 2000, string(content)),
		harness.Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "owned", Mode: 0o777, Uid: 5, Gid: 6}},
		harness.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
	)
	second := pack(t, filepath.Join(dir, "second"),
		folder("dir", 0o2775, 1000, 2000),
		file("dir/.wh.under", 0o644, 0, 0, ""),
		file("dir/second", 0o640, 1001, 1001, "second"),
	)
	third := pack(t, filepath.Join(dir, "third"), file("third", 0o640, 1002, 1002, "third"))
	unpacked := pack(t, filepath.Join(dir, "unpacked"),
		folder("dir", 0o2775, 1000, 2000),
		file("dir/unpacked", 0o640, 1003, 1003, "unpacked"),
	)
	push := func(repo string, indexed bool, layers ...string) string {
		push(t, p.env, p.registry+repo, "/probe", indexed, layers...)
		return p.link.Addr + repo
	}
	return usernsRefs{
		one:   push("/test/probe-one:latest", true, base),
		many:  push("/test/probe-many:latest", true, base, second, third),
		mixed: push("/test/probe-mixed:latest", false, base, second, unpacked),
	}
}

// probe runs an image in a user namespace, or with no ranges in none, and returns
// what the program says.
func probe(ctx context.Context, c *harness.Containerd, snapshotter, ref string, ranges []string, flags ...string) (string, error) {
	args := append([]string{"run", "--rm", "--allow-new-privs", "--snapshotter", snapshotter}, flags...)
	for _, r := range ranges {
		args = append(args, "--uidmap", r, "--gidmap", r)
	}
	return c.Output(ctx, append(args, ref, "probe-"+snapshotter)...)
}

// usernsCase is one way to run an image.
type usernsCase struct {
	name, ref string
	ranges    []string
	flags     []string
}

// mapped are images in user namespaces.
func (r usernsRefs) mapped() (list []usernsCase) {
	add := func(ref string, m int) {
		list = append(list, usernsCase{path.Base(ref) + " " + mappings[m].name, ref, mappings[m].ranges, []string{"--remap-labels"}})
	}
	for m := range mappings {
		add(r.many, m)
	}
	add(r.one, 0)
	add(r.mixed, 0)
	return list
}

// others do without owners that are mapped, or without writing.
func (r usernsRefs) others() []usernsCase {
	return []usernsCase{
		{"no user namespace", r.one, nil, nil},
		{"read-only", r.one, nil, []string{"--read-only"}},
		{"read-only and mapped", r.many, mappings[0].ranges, []string{"--remap-labels", "--read-only"}},
		{"no labels", r.many, mappings[0].ranges, nil},
	}
}

// facts are in the output of every run that may write.
var facts = []string{
	"in the image / 0:0 40755",
	"in the image /owned 1000:65534 100644",
	"in the image /suid-user 1000:2000 106755",
	"new /new 0:0 100644",
	"changed /dir/file 7:8 100644",
	`content "ownedmore": done`,
	"device: done",
	"/suid-root: uid 33 effective 0 reads the secret: true",
	"/suid-user: uid 33 effective 1000 reads the secret: false",
	"/plain: uid 33 effective 33 reads the secret: false",
}

// TestUserNamespaces compares what a container in a user namespace sees and may do
// with the same over overlayfs: where containerd's snapshotter maps owners, and
// where its client changes them, because the proxy plugin lacks remap-ids.
func TestUserNamespaces(t *testing.T) {
	p := real(t)
	ctx := t.Context()
	refs := p.pushProbe(t)
	t.Cleanup(func() {
		args := append([]string{"images", "rm", "--sync"}, refs.all()...)
		if _, err := p.containerd.Ctr(context.Background(), args...); err != nil {
			t.Error(err)
		}
	})
	want := map[string]string{}
	for _, ref := range refs.all() {
		for _, sn := range []string{"overlayfs", "lacuna"} {
			if err := p.containerd.Pull(ctx, sn, ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := append(refs.mapped(), refs.others()...)
	for _, c := range all {
		var err error
		if want[c.name], err = probe(ctx, p.containerd, "overlayfs", c.ref, c.ranges, c.flags...); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(c.flags, "--read-only") {
			continue
		}
		for _, f := range facts {
			if !strings.Contains(want[c.name], f+"\n") {
				t.Errorf("overlayfs, %s: no %q in\n%s", c.name, f, want[c.name])
			}
		}
	}
	same := func(t *testing.T, containerd *harness.Containerd, cases []usernsCase) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				got, err := probe(t.Context(), containerd, "lacuna", c.ref, c.ranges, c.flags...)
				if err != nil {
					t.Fatal(err)
				}
				if got != want[c.name] {
					t.Errorf("got\n%s\noverlayfs has\n%s", got, want[c.name])
				}
			})
		}
	}
	t.Run("remap-ids", func(t *testing.T) { same(t, p.containerd, all) })

	// FUSE's mount is below the root and cannot be mapped.
	env, err := harness.New(p.env.Bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := env.AllowHTTP(p.link.Addr); err != nil {
		t.Fatal(err)
	}
	daemon, err := env.StartDaemon("transport = \"fuse\"\nbackfill.enabled = false")
	if err != nil {
		t.Fatal(err)
	}
	for _, capabilities := range [][]string{nil, {"remap-ids"}} {
		env.Capabilities = capabilities
		containerd, err := env.StartContainerd("lacuna", "")
		if err != nil {
			t.Fatal(err)
		}
		if capabilities == nil {
			for _, ref := range refs.all() {
				if err := containerd.Pull(ctx, "lacuna", ref); err != nil {
					t.Fatal(err)
				}
			}
			lazy, err := harness.Mounts(daemon.Root + "/snapshots/m")
			if err != nil || len(lazy) != 3 {
				t.Errorf("layers mounted: %q, %v", lazy, err)
			}
		}
		t.Run(fmt.Sprintf("FUSE %q", capabilities), func(t *testing.T) { same(t, containerd, refs.mapped()) })
		if err := containerd.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}
