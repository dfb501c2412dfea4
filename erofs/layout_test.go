package erofs

import (
	"fmt"
	"strings"
	"testing"
)

// The superblock has 16 bits for the root's number.
func TestRootBehindManySharedXattrs(t *testing.T) {
	var files []file
	for i := range 800 {
		value := attr("user.large", fmt.Sprintf("%03000d", i))
		files = append(files, file{hdr(fmt.Sprintf("a%d", i), value), "x"}, file{hdr(fmt.Sprintf("b%d", i), value), "y"})
	}
	checkLayer(t, makeTar(t, files...))
}

// A directory whose last block is full has nothing to put beside its inode.
func TestDirectoriesWithFullBlocks(t *testing.T) {
	var files []file
	for last := range 3 { // entries in blocks before
		dir := fmt.Sprintf("d%d/", last)
		files = append(files, file{hdr(dir), ""})
		left := BlockSize - 2*direntSize - len("...")
		for block := range last + 1 {
			if block > 0 {
				left = BlockSize
			}
			for i := 0; left > 0; i++ {
				n := min(200, left-direntSize)
				if rest := left - direntSize - n; rest > 0 && rest < direntSize+10 {
					n -= 30
				}
				name := fmt.Sprintf("%d-%02d", block, i)
				files = append(files, file{hdr(dir+name+strings.Repeat("x", n-len(name)), typ('2', "t")), ""})
				left -= direntSize + n
			}
		}
	}
	checkLayer(t, makeTar(t, files...))
}
