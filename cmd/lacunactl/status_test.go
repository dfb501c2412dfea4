package main

import (
	"strings"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
)

func TestStatusForPeople(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	st := &statusapi.Status{
		Version: "v1", Started: now.Add(-time.Hour), Root: "/r", Transport: "fuse", Quarantined: 1, Allocated: 3e9, CacheLimit: 20e9,
		PassedOver: []string{"transport fanotify cannot be used: Linux 6.14 is needed"},
		Disk:       statusapi.Disk{FileSystem: "ext4", Size: 100e9, Free: 1e9},
		Problems:   []string{"less than 5 % is free"},
		Registries: []statusapi.Registry{{Registry: "r.example", Since: now.Add(-3 * time.Minute), Failures: 7, Error: "status 503"}},
	}
	var out strings.Builder
	printStatus(&out, st, now)
	for _, want := range []string{
		"started      2026-01-02 02:04:05 UTC (1h0m0s ago)\n",
		"transport    fuse\n             transport fanotify cannot be used: Linux 6.14 is needed\n",
		"disk         3000.0 MB of at most 20.0 GB; 1000.0 MB of 100.0 GB free, ext4\n",
		"\nproblem: less than 5 % is free\n",
		"registry r.example has failed since 2026-01-02 03:01:05 UTC (3m0s ago), 7 times: status 503\n",
		"lacunactl layers\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in\n%s", want, &out)
		}
	}
}
