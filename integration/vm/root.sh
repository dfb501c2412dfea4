#!/bin/sh
# Makes the root file system of the VM tests, an ext4 image: a Debian base with
# runc, from the machine's own apt sources.
#
#   root.sh FILE
set -eu
file=$1
dir=$file.d
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
rm -rf "$dir"
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
mmdebstrap --quiet --mode=root --variant=minbase --include=runc,e2fsprogs "$suite" "$dir"
mkdir -p "$dir/payload" "$dir/sys/fs/cgroup"
rm -f "$file.new"
mke2fs -q -t ext4 -d "$dir" "$file.new" 3G
mv "$file.new" "$file"
