package child

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const roleVariable = "LACUNA_TEST_CHILD"

// TestMain is also the process that is killed: it starts a program that makes a file
// when its input, which the test holds, ends.
func TestMain(m *testing.M) {
	path := os.Getenv(roleVariable)
	if path == "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("sh", "-c", `touch "$1.begun"; cat; touch "$1"`, "sh", path)
	cmd.Stdin = os.Stdin
	if _, err := CombinedOutput(cmd); err != nil {
		os.Exit(1)
	}
}

// TestEndsWithTheProcess kills a process whose program has not done its work yet.
func TestEndsWithTheProcess(t *testing.T) {
	for name, kill := range map[string]bool{"killed": true, "not killed": false} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "done")
			in, hold, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer hold.Close()
			// The program has this open until it ends.
			ended, theirs, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer ended.Close()
			parent := exec.CommandContext(t.Context(), "/proc/self/exe")
			parent.Env = append(os.Environ(), roleVariable+"="+path)
			parent.Stdin, parent.Stderr = in, theirs
			parent.ExtraFiles = []*os.File{theirs}
			if err := parent.Start(); err != nil {
				t.Fatal(err)
			}
			in.Close()
			theirs.Close()
			for !exists(path + ".begun") {
				time.Sleep(time.Millisecond)
			}
			if kill {
				_ = parent.Process.Kill()
			} else {
				hold.Close()
			}
			_ = parent.Wait()
			if kill {
				hold.Close() // a program that goes on makes the file
			}
			if _, err := ended.Read(make([]byte, 1)); err == nil {
				t.Error("the program wrote an error")
			}
			if exists(path) == kill {
				t.Errorf("the work was done: %v", !kill)
			}
		})
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

func TestOutput(t *testing.T) {
	out, err := CombinedOutput(exec.CommandContext(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 3"))
	var exit *exec.ExitError
	if string(out) != "out\nerr\n" || !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := CombinedOutput(exec.CommandContext(t.Context(), "/nonexistent")); err == nil {
		t.Error("no error")
	}
}
