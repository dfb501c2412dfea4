// Command reader reads all files of its image's /data, so many times, and prints a
// digest of names and contents for each; or it waits.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		time.Sleep(time.Hour)
		return
	}
	passes, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	for range passes {
		if err := pass(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

func pass() error {
	h := sha256.New()
	err := filepath.WalkDir("/data", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Fprintln(h, path)
		_, err = io.Copy(h, f)
		return err
	})
	fmt.Printf("%x\n", h.Sum(nil))
	return err
}
