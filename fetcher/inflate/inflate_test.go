package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
)

// sample is n bytes that compress like a layer: text with repeats near and
// far, runs, and noise.
func sample(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n)
	for len(b) < n {
		switch r.IntN(6) {
		case 0:
			for range r.IntN(3000) {
				b = append(b, byte(r.Uint32()))
			}
		case 1:
			c := byte(r.Uint32())
			for range r.IntN(2000) {
				b = append(b, c)
			}
		case 2:
			if len(b) > 0 {
				from := len(b) - 1 - r.IntN(min(len(b), 60000))
				b = append(b, b[from:min(len(b), from+r.IntN(5000))]...)
			}
		default:
			for range r.IntN(200) {
				b = append(b, fmt.Sprintf("lib/%x/%d.so\n", r.IntN(300), r.IntN(50))...)
			}
		}
	}
	return b[:n]
}

func compress(t testing.TB, level int, members ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, m := range members {
		w, err := stdgzip.NewWriterLevel(&out, level)
		if err != nil {
			t.Fatal(err)
		}
		w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
		half := len(m) / 2
		for _, part := range [][]byte{m[:half], m[half:]} {
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil { // an empty stored block
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

type recording struct {
	points []Point
	stops  [][2]int64
}

func (rec *recording) recorder(spacing, grain int64) Recorder {
	return Recorder{
		Spacing: spacing, Grain: grain,
		Point: func(c Point) { rec.points = append(rec.points, c) },
		Stop:  func(out, in int64) { rec.stops = append(rec.stops, [2]int64{out, in}) },
	}
}

func TestReader(t *testing.T) {
	plain := sample(2<<20, 7)
	empty := []byte{}
	for _, tc := range []struct {
		name    string
		level   int
		members [][]byte
	}{
		{"stored", stdgzip.NoCompression, [][]byte{plain}},
		{"huffman only", stdgzip.HuffmanOnly, [][]byte{plain}},
		{"fast", stdgzip.BestSpeed, [][]byte{plain}},
		{"best", stdgzip.BestCompression, [][]byte{plain}},
		{"empty", 6, [][]byte{empty}},
		{"tiny", 6, [][]byte{[]byte("x")}},
		{"members", 6, [][]byte{plain[:1000], empty, plain[1000:700000], plain[700000:]}},
		{"zeros", 9, [][]byte{make([]byte, 2<<20)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			packed := compress(t, tc.level, tc.members...)
			want := bytes.Join(tc.members, nil)
			var rec recording
			got, err := io.ReadAll(NewReader(bytes.NewReader(packed), rec.recorder(MinSpacing, 16<<10)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatal("wrong bytes")
			}
			if last := rec.stops[len(rec.stops)-1]; last != [2]int64{int64(len(want)), int64(len(packed))} {
				t.Errorf("last stop %v, stream is %d of %d", last, len(want), len(packed))
			}
			checkRandomAccess(t, packed, want, &rec)

			slow, err := io.ReadAll(NewReader(iotest.OneByteReader(bytes.NewReader(packed)), Recorder{}))
			if err != nil || !bytes.Equal(slow, want) {
				t.Fatalf("byte by byte: %v", err)
			}
		})
	}
}

// checkRandomAccess decodes from each point to several stops after it,
// from exactly the bytes that the stop says are enough.
func checkRandomAccess(t *testing.T, packed, want []byte, rec *recording) {
	t.Helper()
	for i, c := range rec.points {
		tried := 0
		for _, s := range rec.stops {
			out, in := s[0], s[1]
			if out <= c.Out || tried > 6 && out != int64(len(want)) {
				continue
			}
			tried++
			p := Piece{Data: packed[c.In/8 : in : in], Skip: int(c.In % 8), Window: c.Window}
			got, err := new(Expander).Expand(p, int(out-c.Out))
			if err != nil {
				t.Fatalf("point %d at %d to %d: %v", i, c.Out, out, err)
			}
			if !bytes.Equal(got, want[c.Out:out]) {
				t.Fatalf("point %d at %d to %d: wrong bytes", i, c.Out, out)
			}
		}
	}
}

func TestSparseWindowsAreMostlyZero(t *testing.T) {
	plain := sample(8<<20, 3)
	var rec recording
	if _, err := io.Copy(io.Discard, NewReader(bytes.NewReader(compress(t, 6, plain)), rec.recorder(256<<10, 0))); err != nil {
		t.Fatal(err)
	}
	used, all := 0, 0
	for _, c := range rec.points {
		for _, b := range c.Window {
			if b != 0 {
				used++
			}
			all++
		}
	}
	if all == 0 || used*2 > all {
		t.Errorf("%d of %d window bytes kept", used, all)
	}
}

func TestCorrupt(t *testing.T) {
	packed := compress(t, 6, sample(300000, 9))
	decode := func(b []byte) error {
		_, err := io.Copy(io.Discard, NewReader(bytes.NewReader(b), Recorder{}))
		return err
	}
	for cut := range len(packed) {
		if cut > 200 && cut < len(packed)-200 && cut%4999 != 0 {
			continue
		}
		if err := decode(packed[:cut]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	for at := range len(packed) {
		if at >= 3 && at < 40 || at%977 != 0 { // a name's or time's byte may change freely
			continue
		}
		bad := bytes.Clone(packed)
		bad[at] ^= 0x10
		if err := decode(bad); !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("flip at %d: %v", at, err)
		}
	}
	if err := decode(append(bytes.Clone(packed), "trailing"...)); err == nil {
		t.Error("garbage after the last member was accepted")
	}
}

func TestReaderPassesSourceErrors(t *testing.T) {
	boom := errors.New("boom")
	packed := compress(t, 6, sample(1<<20, 2))
	src := io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), iotest.ErrReader(boom))
	if _, err := io.Copy(io.Discard, NewReader(src, Recorder{})); !errors.Is(err, boom) {
		t.Fatal(err)
	}
}

func TestExpanderRefusesBadPieces(t *testing.T) {
	for _, p := range []Piece{
		{},
		{Data: []byte{1}, Skip: 8},
		{Data: []byte{1}, Skip: -1},
		{Data: []byte{1}, Window: make([]byte, 5)},
		{Data: []byte{0xff, 0xff}},
	} {
		if _, err := new(Expander).Expand(p, 10); err == nil {
			t.Errorf("%+v was accepted", p)
		}
	}
}

// FuzzReader holds the Reader against the standard library.
func FuzzReader(f *testing.F) {
	for _, n := range []int{0, 1, 100, 70000} {
		for _, level := range []int{stdgzip.NoCompression, stdgzip.HuffmanOnly, 1, 9} {
			f.Add(compress(f, level, sample(n, 1)))
		}
	}
	f.Add(compress(f, 6, []byte("a"), nil, []byte("b")))
	f.Fuzz(func(t *testing.T, data []byte) {
		const most = 4 << 20
		var want []byte
		zr, wantErr := stdgzip.NewReader(bytes.NewReader(data))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(zr, most))
		}
		var rec recording
		got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(data), rec.recorder(MinSpacing, 8<<10)), most))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, compress/gzip says %v", err, wantErr)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(got, want) {
			t.Fatal("wrong bytes")
		}
		if len(got) < most {
			checkRandomAccess(t, data, want, &rec)
		}
	})
}

// FuzzExpand feeds Expand lies. Any answer but a panic or a loop is fine.
func FuzzExpand(f *testing.F) {
	f.Add(compress(f, 6, sample(1000, 1))[10:], uint8(0), true, uint16(1000))
	f.Fuzz(func(t *testing.T, data []byte, skip uint8, window bool, n uint16) {
		p := Piece{Data: data, Skip: int(skip)}
		if window {
			p.Window = make([]byte, WindowSize)
		}
		if got, err := new(Expander).Expand(p, int(n)); err == nil && len(got) != int(n) {
			t.Fatalf("%d bytes, asked for %d", len(got), n)
		}
	})
}

func BenchmarkInflate(b *testing.B) {
	plain := sample(64<<20, 5)
	packed := compress(b, 6, plain)
	b.Run("lacuna recording", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		for b.Loop() {
			var rec recording
			r := NewReader(bytes.NewReader(packed), rec.recorder(256<<10, 16<<10))
			if _, err := io.Copy(io.Discard, r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("klauspost", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		for b.Loop() {
			r, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
