#!/bin/sh
# Makes a kernel for the VM tests in a directory: Debian's own, unpacked, with
# the cachefiles and erofs modules rebuilt from Debian's source with their
# on-demand options, which Debian leaves off.
#
#   kernel.sh 6.1|6.12 DIRECTORY
#
# leaves DIRECTORY/vmlinuz, DIRECTORY/modules (a root for modprobe) and
# DIRECTORY/release.
set -eu
series=$1 dir=$2
case $series in
6.1) meta=linux-headers-cloud-amd64 ;;
6.12) meta=linux-headers-6.12-cloud-amd64 ;;
*) echo "kernel.sh: no kernel of series $series" >&2; exit 1 ;;
esac

headers=$(apt-cache depends "$meta" | sed -n 's/^ *Depends: //p')
version=$(apt-cache show "$headers" | sed -n 's/^Version: //p' | head -n 1)
release=${headers#linux-headers-}
abi=${release%-cloud-amd64}
if [ -z "$abi" ]; then
	echo "kernel.sh: no package $meta; is apt-get update needed?" >&2
	exit 1
fi
kbuild=$(apt-cache depends "linux-headers-$abi-common" "$headers" | sed -n 's/^ *Depends: \(linux-kbuild-.*\)/\1/p' | head -n 1)

rm -rf "$dir"
mkdir -p "$dir/deb" "$dir/tree"
cd "$dir/deb"
apt-get download -qq -o APT::Sandbox::User=root \
	"$headers=$version" "linux-headers-$abi-common=$version" "$kbuild=$version" \
	"linux-image-$release-unsigned=$version" "linux-source-$series=$version"
for deb in linux-headers-* linux-kbuild-* linux-image-*; do
	dpkg -x "$deb" ../tree
done
cd ../tree
source=linux-source-$series
dpkg-deb --fsys-tarfile ../deb/"$source"_* | tar -xO "./usr/src/$source.tar.xz" |
	tar -xJ "$source/fs/cachefiles" "$source/fs/erofs" "$source/fs/internal.h"

# The header packages name each other by absolute paths.
kdir=$PWD/usr/src/$headers
sed -i "s|/usr/src/|$PWD/usr/src/|" "$kdir/Makefile"
rm -f "$kdir/vmlinux" # type information for modules needs another tool
for m in "cachefiles CACHEFILES" "erofs EROFS_FS"; do
	set -- $m
	make -s -j"$(nproc)" -C "$kdir" M="$PWD/$source/fs/$1" \
		"CONFIG_$2=m" "CONFIG_$2_ONDEMAND=y" "KCFLAGS=-DCONFIG_$2_ONDEMAND=1" modules
	rm -f lib/modules/"$release"/kernel/fs/"$1"/"$1".ko*
	strip --strip-debug -o lib/modules/"$release"/kernel/fs/"$1"/"$1".ko "$source/fs/$1/$1.ko"
done
depmod -b "$PWD" "$release"

cp "boot/vmlinuz-$release" ../vmlinuz
mkdir ../modules
mv lib ../modules/lib
echo "$release" >../release
cd ..
rm -rf deb tree
