// Package kernel lists the features of Linux that this project depends on. The
// choice of a transport, tests and lacunactl kernel use the same values. Probes need
// root, and leave nothing behind.
package kernel

import (
	"errors"

	"github.com/lacuna-snapshotter/lacuna/internal/feature"
)

// The features.
var (
	EROFS = &feature.Feature{
		Name: "EROFS", Since: feature.Version{Major: 5, Minor: 4}, Config: "CONFIG_EROFS_FS",
		For: "all transports", Probe: probeEROFS,
	}
	EROFSFile = &feature.Feature{
		Name: "EROFS mounts of files", Since: feature.Version{Major: 6, Minor: 12}, Config: "CONFIG_EROFS_FS_BACKED_BY_FILE",
		For: "fanotify; fuse without loop devices", Probe: probeEROFSFile,
	}
	PreContent = &feature.Feature{
		Name: "fanotify pre-content events", Since: feature.Version{Major: 6, Minor: 14}, Config: "CONFIG_FANOTIFY_ACCESS_PERMISSIONS",
		For: "fanotify", Probe: probePreContent,
	}
	Fscache = &feature.Feature{
		Name: "EROFS over fscache", Since: feature.Version{Major: 5, Minor: 19}, Until: feature.Version{Major: 7, Minor: 1},
		Config: "CONFIG_EROFS_FS_ONDEMAND and CONFIG_CACHEFILES_ONDEMAND",
		For:    "cachefiles", Probe: probeFscache,
	}
	Restore = &feature.Feature{
		Name: "cachefiles restore", Since: feature.Version{Major: 6, Minor: 8}, Until: feature.Version{Major: 7, Minor: 1},
		Config: "CONFIG_CACHEFILES_ONDEMAND",
		For:    "cachefiles: readers wait for the next daemon", Probe: probeRestore,
	}
	FUSE = &feature.Feature{
		Name: "FUSE", Since: feature.Version{Major: 2, Minor: 6}, Config: "CONFIG_FUSE_FS",
		For: "fuse", Probe: probeFUSE,
	}
	Loop = &feature.Feature{
		Name: "loop devices whose file can be changed", Since: feature.Version{Major: 5, Minor: 8}, Config: "CONFIG_BLK_DEV_LOOP",
		For: "fuse with loop devices", Probe: probeLoop,
	}
	Freezer = &feature.Feature{
		Name: "version 1 freezer cgroup", Since: feature.Version{Major: 2, Minor: 6}, Config: "CONFIG_CGROUP_FREEZER",
		For: "the anchor: readers wait when everything is killed at once", Probe: probeFreezer,
	}
)

// Features are all of them, in an order to list them in.
var Features = []*feature.Feature{EROFS, EROFSFile, PreContent, Fscache, Restore, FUSE, Loop, Freezer}

// Transport is what the kernel must have for one transport.
type Transport struct {
	Name string
	// Needs are the alternatives: all features of one of them are needed.
	Needs [][]*feature.Feature
}

// Transports are in the order in which "auto" tries them.
var Transports = []Transport{
	{"fanotify", [][]*feature.Feature{{EROFSFile, PreContent}}},
	{"cachefiles", [][]*feature.Feature{{EROFS, Fscache}}},
	{"fuse", [][]*feature.Feature{{FUSE, EROFSFile}, {FUSE, EROFS, Loop}}},
}

// Check returns nil where the kernel has all features of one alternative, else the
// errors of all that are missing. The file system of the daemon's root may still be
// unsuitable.
func (t Transport) Check() error {
	var lacks []error
	for _, way := range t.Needs {
		var errs []error
		for _, f := range way {
			if err := f.Check(); err != nil {
				errs = append(errs, err)
			}
		}
		if len(errs) == 0 {
			return nil
		}
		lacks = append(lacks, errs...)
	}
	return errors.Join(lacks...)
}
