package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// row is one kind of fault on one transport, and what readers saw of it.
type row struct {
	transport, what string
	times           int
	seen            seen
	met             bool
	goal            string
}

func (r row) String() string {
	s := fmt.Sprintf("%-10s %-52s %4d times: %d reads of files, %d wrong, %d failed, longest stall %.2f s",
		r.transport, r.what, r.times, r.seen.files, r.seen.wrong, r.seen.failed, r.seen.stall.Seconds())
	if r.seen.reported > 0 || r.seen.unreported > 0 {
		s += fmt.Sprintf(", wrong in %d containers that were reported and %d that were not", r.seen.reported, r.seen.unreported)
	}
	return fmt.Sprintf("%s (goal: %s): %v", s, r.goal, r.met)
}

// writeReport puts the figures before the notes.
func writeReport(docs string, rows []row) error {
	notes, err := os.ReadFile(filepath.Join(docs, "reliability-notes.md"))
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString(`# Reliability

Written by ` + "`make chaos`" + ` (integration/chaos): containers read the files of an image
again and again, with dropped page caches, and compare each with its SHA-256.

| transport | what was done | times | files read | wrong | failed reads | longest stall | goal | met |
|---|---|---|---|---|---|---|---|---|
`)
	for _, r := range rows {
		met := "yes"
		if !r.met {
			met = "**no**"
		}
		wrong := fmt.Sprint(r.seen.wrong)
		if r.seen.reported+r.seen.unreported > 0 {
			wrong += fmt.Sprintf(" (in %d containers, %d of them reported)", r.seen.reported+r.seen.unreported, r.seen.reported)
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %s | %d | %.2f s | %s | %s |\n",
			r.transport, r.what, r.times, r.seen.files, wrong, r.seen.failed, r.seen.stall.Seconds(), r.goal, met)
	}
	b.WriteString("\n")
	b.Write(notes)
	return os.WriteFile(filepath.Join(docs, "reliability.md"), []byte(b.String()), 0o644)
}
