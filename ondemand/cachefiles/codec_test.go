package cachefiles

import (
	"strings"
	"testing"
)

// mainlineOpen is what Linux 6.12 sent for a mount with fsid=boot and
// domain_id=lacuna: msg_id 0, object 1, descriptor 9.
const mainlineOpen = "\x00\x00\x00\x00\x00\x00\x00\x00\x31\x00\x00\x00\x01\x00\x00\x00" +
	"\x0d\x00\x00\x00\x04\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00" + "erofs,lacuna\x00boot"

func TestDecodeRecorded(t *testing.T) {
	if d := detect([]byte(mainlineOpen)); d != Mainline {
		t.Fatalf("dialect %s", d)
	}
	m, err := decode([]byte(mainlineOpen), Mainline)
	if err != nil || m.id != 0 || m.op != opOpen || m.object != 1 || m.fd != 9 || m.volume != "erofs,lacuna" || m.cookie != "boot" || !m.wantSize {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestDetect(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
		want Dialect
	}{
		{"mainline OPEN", encodeOpen(Mainline, 0, 1, 5, "erofs,d\x00", "cookie"), Mainline},
		{"v5 OPEN", encodeOpen(V5, 0, 0, 5, "erofs\x00", "cookie"), V5},
		{"mainline OPEN without a cookie", encodeOpen(Mainline, 0, 1, 5, "erofs,d\x00", ""), Mainline},
		{"v5 OPEN without a cookie", encodeOpen(V5, 0, 0, 5, "erofs\x00", ""), V5},
		{"v5 OPEN, zeros as cookie", encodeOpen(V5, 3, 0, 5, "erofs\x00", strings.Repeat("\x00", 64)), V5},
		{"mainline READ", encodeRead(Mainline, 0, 1, 0, 4096), Mainline},
		{"v5 READ", encodeRead(V5, 0, 1, 0, 4096), V5},
		{"CLOSE", encodeClose(0, 1), Unknown},
		{"nothing", nil, Unknown},
		{"another file system's volume", encodeOpen(Mainline, 0, 1, 5, "nfs,d\x00", "c"), Unknown},
	} {
		if got := detect(c.b); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestDomains(t *testing.T) {
	for volume, want := range map[string]string{"erofs,lacuna": "lacuna", "erofs,lacuna.3": "lacuna", "erofs,my.domain": "my.domain", "erofs": ""} {
		if got := baseDomain(domain(volume)); got != want {
			t.Errorf("%s: %q, want %q", volume, got, want)
		}
	}
	if got := nthDomain("lacuna", 0) + " " + nthDomain("lacuna", 2); got != "lacuna lacuna.2" {
		t.Error(got)
	}
}

func TestLimits(t *testing.T) {
	if (Limits{}).commands() != nil {
		t.Error("the kernel's own limits")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(mainlineOpen))
	for _, d := range []Dialect{Mainline, V5} {
		f.Add(encodeOpen(d, 1, 2, 3, "erofs,d\x00", "cookie"))
		f.Add(encodeRead(d, 1, 2, 4096, 1<<20))
		f.Add(encodeClose(1, 2))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, d := range []Dialect{Mainline, V5} {
			m, err := decode(b, d)
			if err != nil {
				continue
			}
			if len(m.volume)+len(m.cookie) > len(b) || m.off < 0 || m.n < 0 || m.off+m.n < 0 {
				t.Errorf("%+v of %d bytes", m, len(b))
			}
		}
		detect(b)
	})
}
