// Package child runs programs that end with this process. What a daemon has asked
// umount(8) to do must not happen after its death, when the next daemon relies on the
// mounts that it has found.
package child

import (
	"bytes"
	"os/exec"
	"runtime"
	"syscall"
)

// Start starts a command that the kernel kills when this process dies (PR_SET_PDEATHSIG,
// prctl(2)). The channel gets the outcome when the program has ended. A program that
// waits in the kernel, uninterruptibly, ends when that is over.
func Start(cmd *exec.Cmd) (<-chan error, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started, done := make(chan error), make(chan error, 1)
	go func() {
		// The signal comes when the thread that has started the program ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	return done, <-started
}

// CombinedOutput is exec.Cmd's, of a command that ends with this process.
func CombinedOutput(cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	done, err := Start(cmd)
	if err == nil {
		err = <-done
	}
	return out.Bytes(), err
}
