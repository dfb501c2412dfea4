package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/child"
)

// MountError is a mount or unmount that failed, with a hint where there is one.
type MountError struct {
	Op     string // "mount" or "unmount"
	Target string
	Err    error
}

func (e *MountError) Error() string {
	hint := ""
	if e.Op == "mount" {
		switch {
		case errors.Is(e.Err, unix.ENODEV):
			hint = " (the kernel has no EROFS: CONFIG_EROFS_FS)"
		case errors.Is(e.Err, unix.ENOTBLK):
			hint = " (the kernel cannot mount EROFS from files: needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE)"
		case errors.Is(e.Err, unix.EPERM):
			hint = " (needs CAP_SYS_ADMIN)"
		}
	}
	return fmt.Sprintf("%s erofs at %s: %v%s", e.Op, e.Target, e.Err, hint)
}

// Unwrap returns the system call's error.
func (e *MountError) Unwrap() error { return e.Err }

// mountFlags are the flags of all mounts here. A container reaches device nodes and
// set-user-ID programs through an overlay, which has flags of its own; on the
// mountpoint itself they are not needed.
const mountFlags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV

// Mount mounts bootstrap and blob, both files, read-only at target.
func Mount(bootstrap, blob, target string) error {
	if strings.ContainsAny(blob, ",") {
		return &MountError{"mount", target, fmt.Errorf("a comma in the path %q", blob)}
	}
	if err := unix.Mount(bootstrap, target, "erofs", mountFlags, "device="+blob); err != nil {
		return &MountError{"mount", target, err}
	}
	return nil
}

// Fscache names a file system that the kernel reads through fscache, from a daemon
// that serves cachefiles.
type Fscache struct {
	ID     string // of the bootstrap
	Domain string // in which mounts share the objects
	Device string // of the blob; may be empty
}

// Options are the mount's options, for mount(8).
func (f Fscache) Options() string {
	o := "fsid=" + f.ID + ",domain_id=" + f.Domain
	if f.Device != "" {
		o += ",device=" + f.Device
	}
	return o
}

// MountFscache mounts a file system through fscache, read-only, at target. Where
// a file system of that name is mounted in the domain already, the error is
// EEXIST.
//
// mount(8) makes the mount, in another process: the thread that mounts waits,
// uninterruptibly, for answers of the daemon that serves cachefiles, which is this
// process. If the thread were one of this process and the process were killed, its
// descriptors would stay open, and the next daemon could not take over.
func MountFscache(f Fscache, target string) error {
	cmd := exec.Command("mount", "-i", "-t", "erofs", "-o", "ro,nosuid,nodev,"+f.Options(), "none", target) //nolint:noctx // see above
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := child.CombinedOutput(cmd)
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(string(out))
	switch { // mount(8) reports errors as text only
	case strings.Contains(text, "File exists"):
		err = unix.EEXIST
	case strings.Contains(text, "wrong fs type"), strings.Contains(text, "unknown filesystem"):
		text += " (does the kernel have CONFIG_EROFS_FS_ONDEMAND? see dmesg)"
	}
	return &MountError{"mount", target, fmt.Errorf("%w: %s", err, text)}
}

// Unmount removes the mount; a mount that is still in use ends with its last user. The
// file system may end later: the kernel waits, uninterruptibly, for reads that are in
// progress, such as the read-ahead of a process that was killed.
//
// So umount(8) does it, in another process, for which Unmount does not wait once the
// target is free. If a thread of this process waited, the daemon that answers those
// reads might not get to serve them, and after its death its descriptors would stay
// open, and the next daemon could not take over. umount(8) ends with this process: it
// must not unmount what the next daemon has found mounted.
func Unmount(target string) error {
	cmd := exec.Command("umount", "-c", "-i", "-l", target) //nolint:noctx // see above
	var out bytes.Buffer
	cmd.Env, cmd.Stderr = append(os.Environ(), "LC_ALL=C"), &out
	done, err := child.Start(cmd)
	if err != nil {
		return &MountError{"unmount", target, err}
	}
	look := time.NewTicker(unmountLook)
	defer look.Stop()
	for {
		select {
		case err := <-done:
			if err == nil {
				return nil
			}
			text := strings.TrimSpace(out.String())
			if strings.Contains(text, "not mounted") { // umount(8) reports errors as text only
				err = unix.EINVAL
			}
			return &MountError{"unmount", target, fmt.Errorf("%w: %s", err, text)}
		case <-look.C:
			if Mounted(target) {
				continue
			}
			select { // the rest is usually quick
			case <-done: //nolint:errcheck // the target is free
			case <-time.After(unmountRest):
			}
			return nil
		}
	}
}

// unmountLook is how often Unmount looks whether its target is free.
const unmountLook = 20 * time.Millisecond

// unmountRest is how long Unmount waits for the end of the file system when its target
// is free.
const unmountRest = time.Second

// Mounted reports whether an EROFS file system is mounted at target.
func Mounted(target string) bool {
	var st unix.Statfs_t
	return unix.Statfs(target, &st) == nil && uint32(st.Type) == unix.EROFS_SUPER_MAGIC_V1
}
