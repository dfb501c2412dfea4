package ondemand

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace has a read fail for a minute: the loop neither spins, nor stops, nor
// fills the log, and is at once as fast as before when it is over.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := Pace{Log: slog.New(slog.NewTextHandler(&out, nil)), What: "reading"}
		tries := 0
		for began := time.Now(); time.Since(began) < time.Minute; tries++ {
			p.Failed(errors.New("too many open files"))
		}
		if least, most := int(time.Minute/maxPace), int(time.Minute/maxPace)+20; tries < least || tries > most {
			t.Errorf("%d tries, expected %d to %d", tries, least, most)
		}
		if n := strings.Count(out.String(), "too many open files"); n < 2 || n > int(time.Minute/paceLog)+1 {
			t.Errorf("%d messages", n)
		}
		p.Good()
		began := time.Now()
		p.Failed(errors.New("again"))
		if waited := time.Since(began); waited != minPace {
			t.Errorf("waited %v after it was good", waited)
		}
	})
}
