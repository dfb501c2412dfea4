// Package durable makes names survive a loss of power.
//
// A file that was created, renamed or removed is so for good only when its directory
// has been synced: fsync(2) of a file does not cover its name.
package durable

import (
	"errors"
	"os"
)

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
