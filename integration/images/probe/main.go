// Command probe tells who owns the files of its container, and what it may do there.
// Each line of its output is one fact; where something fails the line has the error.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "effect" {
		effect()
		return
	}
	tree()
	write()
	device()
	for _, program := range []string{"/suid-root", "/suid-user", "/plain"} {
		run(program)
	}
}

// tree tells the owners of all files but those that the runtime mounts.
func tree() {
	err := filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch path {
		case "/dev", "/proc", "/sys", "/run":
			return filepath.SkipDir
		}
		stat("in the image", path)
		return nil
	})
	say("walk", err)
}

func stat(when, path string) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		say(when+" "+path, err)
		return
	}
	fmt.Printf("%s %s %d:%d %o\n", when, path, st.Uid, st.Gid, st.Mode)
}

// write changes files of lower directories, which overlay copies up, and makes new
// ones.
func write() {
	say("create", os.WriteFile("/new", []byte("new"), 0o644))
	stat("new", "/new")
	say("create in a directory of the image", os.WriteFile("/dir/new", nil, 0o644))
	stat("new", "/dir/new")
	stat("changed", "/dir")
	f, err := os.OpenFile("/owned", os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("more")
		err = errors.Join(err, f.Close())
	}
	say("append", err)
	b, err := os.ReadFile("/owned")
	say(fmt.Sprintf("content %q", b), err)
	stat("changed", "/owned")
	say("chmod", os.Chmod("/secret", 0o400))
	stat("changed", "/secret")
	say("chown", os.Lchown("/dir/file", 7, 8))
	stat("changed", "/dir/file")
	say("remove", os.Remove("/dir/gone"))
	stat("removed", "/dir/gone")
	say("chown the root", os.Lchown("/", 3, 4))
	stat("changed", "/")
	say("chown the root back", os.Lchown("/", 0, 0))
}

// device uses a node of the image.
func device() {
	f, err := os.OpenFile("/null", os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteString("x")
		err = errors.Join(err, f.Close())
	}
	say("device", err)
}

// run starts a program as a user who may not read /secret.
func run(program string) {
	cmd := exec.Command(program, "effect")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 33, Gid: 33}}
	out, err := cmd.CombinedOutput()
	fmt.Printf("%s: %s", program, out)
	say(program, err)
}

// effect tells whose rights the program has.
func effect() {
	_, err := os.ReadFile("/secret")
	fmt.Println("uid", os.Getuid(), "effective", os.Geteuid(), "reads the secret:", err == nil)
}

func say(what string, err error) {
	text := "done"
	if err != nil {
		text = strings.TrimSpace(err.Error())
	}
	fmt.Println(what+":", text)
}
