#!/bin/bash
# Builds the gzip layers of an image from Debian packages, as root:
#
#   build.sh OUT APP PACKAGE...
#
# OUT/0.tar.gz is a Debian base, OUT/1.tar.gz what the packages add to it,
# OUT/2.tar.gz the directory APP. Packages come from the machine's own apt
# sources. Nothing is left mounted, also after an interrupt.
set -euo pipefail
out=$1 app=$2
shift 2
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
mkdir -p "$out"
work=$(mktemp -d "$out/.work-XXXXXX")
merged=$work/merged

cleanup() {
  for m in "$merged/proc" "$merged"; do
    if mountpoint -q "$m"; then umount -l "$m"; fi
  done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The base is kept: every image begins with it.
base=$(dirname "$out")/base
if [ ! -e "$base.done" ]; then
  rm -rf "$base"
  mmdebstrap --quiet --mode=root --variant=minbase "$suite" "$base"
  touch "$base.done"
fi

mkdir -p "$merged" "$work/upper" "$work/work"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" "$merged"
mount -t proc proc "$merged/proc"
rm -f "$merged"/etc/apt/sources.list "$merged"/etc/apt/sources.list.d/*
cp -a /etc/apt/sources.list* /etc/apt/apt.conf.d /etc/apt/trusted.gpg.d "$merged/etc/apt/" 2>/dev/null || true
cp -L /etc/resolv.conf /etc/hosts "$merged/etc/" || true
chroot "$merged" apt-get update -qq
DEBIAN_FRONTEND=noninteractive chroot "$merged" apt-get install -y -qq --no-install-recommends "$@" >/dev/null
chroot "$merged" apt-get clean
rm -rf "$merged"/var/lib/apt/lists/* "$merged"/var/log/apt "$merged"/var/log/dpkg.log
umount "$merged/proc"
umount "$merged"

# overlayfs's deletions become OCI's.
cd "$work/upper"
find . -type c | while read -r f; do
  if [ "$(stat -c %t:%T "$f")" = 0:0 ]; then
    rm "$f"
    touch "$(dirname "$f")/.wh.$(basename "$f")"
  fi
done
getfattr -R -h -m trusted.overlay.opaque . 2>/dev/null | sed -n 's/^# file: //p' | while read -r d; do
  touch "$d/.wh..wh..opq"
done

pack() {
  tar --numeric-owner --sort=name --xattrs --xattrs-include='user.*' --xattrs-include='security.*' \
    --format=posix --pax-option=delete=atime,delete=ctime -C "$1" -cf - . | gzip -6 >"$2.new"
  mv "$2.new" "$2"
}
pack "$base" "$out/0.tar.gz"
pack "$work/upper" "$out/1.tar.gz"
pack "$app" "$out/2.tar.gz"
