# Runs in the VM, as all that it does.
set -u
run=$(sed -n 's/.*lacuna.run=\([^ ]*\).*/\1/p' /proc/cmdline)
LACUNA_KILLS=$(sed -n 's/.*lacuna.kills=\([0-9]*\).*/\1/p' /proc/cmdline)
export LACUNA_KILLS
echo 60 >/proc/sys/kernel/hung_task_timeout_secs
uname -r
status=0
mkdir -p /var/tmp/tests
cd /var/tmp/tests
export TMPDIR=/var/tmp/tests LACUNA_VM=1
/payload/bin/cachefiles.test -test.v -test.run "$run" -test.timeout 60m || status=1
/payload/bin/fuse.test -test.v -test.run "$run" -test.timeout 8m || status=1
/payload/bin/guest.test -test.v -test.run "$run" -test.timeout 8m || status=1

# Nothing is left: no mount, no descriptor of the cache, no complaint.
if grep -q ' erofs ' /proc/mounts; then
	echo "LEFT: mounts"; grep ' erofs ' /proc/mounts; status=1
fi
if ls -l /proc/[0-9]*/fd 2>/dev/null | grep -e 'anon_inode:\[cachefiles\]' -e /dev/cachefiles; then
	echo "LEFT: descriptors of the cache"; status=1
fi
if dmesg | grep -E 'blocked for more than|BUG:|WARNING:|Oops|general protection|refcount_t'; then
	echo "LEFT: complaints of the kernel"; dmesg | tail -60; status=1
fi
exit $status
