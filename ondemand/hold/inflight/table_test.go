package inflight

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

var shape = Shape{Inbox: 8192, Note: 100, Slot: 64, Slots: 16}

func TestSuccessorFindsWhatIsLeft(t *testing.T) {
	j, err := New(shape)
	if err != nil {
		t.Fatal(err)
	}
	one, two := put(t, j, []byte("one")), put(t, j, bytes.Repeat([]byte("2"), 64))
	for _, b := range [][]byte{nil, make([]byte, 65)} {
		if slot, err := j.Put(b); err == nil {
			t.Errorf("a request of %d bytes is in slot %d", len(b), slot)
		}
	}
	j.Clear(one)
	j.Clear(-1)
	if err := j.SetNote([]byte("noted")); err != nil {
		t.Fatal(err)
	}
	if err := j.SetNote(make([]byte, 101)); err == nil {
		t.Error("a note of any length was taken")
	}
	copy(j.Inbox(), "inbox")

	again, err := Open(j.File(), shape)
	if err != nil {
		t.Fatal(err)
	}
	left := again.Left() // killed between the read and its note
	if left.Noted || !bytes.HasPrefix(left.Inbox, []byte("inbox\x00")) {
		t.Errorf("inbox %q", left.Inbox[:10])
	}
	j.Received(5)
	left = again.Left()
	if !left.Noted || string(left.Inbox) != "inbox" || len(left.Slots) != 1 || len(left.Slots[two]) != 64 || string(again.Note()) != "noted" {
		t.Errorf("%+v", left)
	}
	j.Emptied(5)
	if left = again.Left(); left.Noted || left.Inbox[0] != 0 {
		t.Errorf("%+v", left)
	}
	again.Clear(two)
	if slot := put(t, again, []byte("more")); slot != two {
		t.Errorf("slot %d, %d was free", slot, two)
	}
}

func put(t *testing.T, j *Table, b []byte) int {
	t.Helper()
	slot, err := j.Put(b)
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

// TestFullTableGrows has more requests wait than there is room for: all are
// found, by a successor that knows nothing of the growth, and it goes on so.
func TestFullTableGrows(t *testing.T) {
	small := shape
	small.Slots = 2
	j, err := New(small)
	if err != nil {
		t.Fatal(err)
	}
	const requests = 5000 // several pages, and an odd rest
	want := map[int]string{}
	for i := range requests {
		text := fmt.Sprint("request ", i)
		want[put(t, j, []byte(text))] = text
	}
	if len(want) != requests {
		t.Fatalf("%d requests share %d slots", requests, len(want))
	}
	for slot := range want {
		if slot%3 == 0 {
			j.Clear(slot)
			delete(want, slot)
		}
	}
	copy(j.Inbox(), "inbox")
	for range 2 {
		again, err := Open(j.File(), small)
		if err != nil {
			t.Fatal(err)
		}
		left := again.Left()
		if len(left.Slots) != len(want) || string(left.Inbox[:5]) != "inbox" {
			t.Fatalf("%d requests are left, %d were", len(left.Slots), len(want))
		}
		for slot, text := range want {
			if string(left.Slots[slot]) != text {
				t.Errorf("slot %d: %q, was %q", slot, left.Slots[slot], text)
			}
		}
		for i := range requests { // it uses what is free, and grows
			text := fmt.Sprint("later ", i)
			slot := put(t, again, []byte(text))
			if old, taken := want[slot]; taken {
				t.Fatalf("slot %d of %q was given away", slot, old)
			}
			want[slot] = text
		}
	}
}

// TestNoMemory has the table refuse what it cannot record.
func TestNoMemory(t *testing.T) {
	small := shape
	small.Slots = 2
	j, err := New(small)
	if err != nil {
		t.Fatal(err)
	}
	put(t, j, []byte("one"))
	put(t, j, []byte("two"))
	// As when memory is short: the file cannot grow.
	if _, err := unix.FcntlInt(j.File().Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	if slot, err := j.Put([]byte("three")); err == nil {
		t.Errorf("there is a slot %d", slot)
	}
	if left := j.Left(); len(left.Slots) != 2 {
		t.Errorf("%d requests are left", len(left.Slots))
	}
	j.Clear(1)
	put(t, j, []byte("three"))
}

func TestAnotherVersion(t *testing.T) {
	j, err := New(shape)
	if err != nil {
		t.Fatal(err)
	}
	other := shape
	other.Slot++
	if _, err := Open(j.File(), other); err == nil {
		t.Error("another shape was taken")
	}
	if err := Fits(j.File(), other); err == nil {
		t.Error("another shape fits")
	}
	if err := Fits(j.File(), shape); err != nil {
		t.Error(err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(shape.size(shape.Slots))); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f, shape); err == nil {
		t.Error("zeros were taken")
	}
}
