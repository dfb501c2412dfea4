package journal

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

var shape = Shape{Inbox: 8192, Note: 100, Slot: 64, Slots: 16}

func TestSuccessorFindsWhatIsLeft(t *testing.T) {
	j, err := New(shape)
	if err != nil {
		t.Fatal(err)
	}
	one := j.Put([]byte("one"))
	two := j.Put(bytes.Repeat([]byte("2"), 64))
	if one < 0 || two < 0 || j.Put(make([]byte, 65)) != -1 || j.Put(nil) != -1 {
		t.Fatal(one, two)
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
	for i := range shape.Slots - 1 {
		if again.Put([]byte(fmt.Sprint(i))) < 0 {
			t.Errorf("no room for request %d", i)
		}
	}
	if again.Put([]byte("more")) != -1 {
		t.Error("a full journal took a request")
	}
	again.Clear(two)
	if again.Put([]byte("more")) != two {
		t.Error("the slot was not given away again")
	}
}

func TestAnotherVersion(t *testing.T) {
	j, err := New(shape)
	if err != nil {
		t.Fatal(err)
	}
	other := shape
	other.Slots++
	if _, err := Open(j.File(), other); err == nil {
		t.Error("another shape was taken")
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(shape.size())); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f, shape); err == nil {
		t.Error("zeros were taken")
	}
}
