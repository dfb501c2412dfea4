// Package ondemand fills holes: a reader in the kernel waits for bytes of a blob. The
// engine has them fetched once, verified and written, and then the reader is answered.
//
// # Model
//
// A [Blob] is a sparse file as large as a layer's virtual blob, cut into spans.
// A span is a hole, in flight, or filled. A [Source] brings spans; it has
// verified them. An [Engine] is the blobs of a node under their keys, and the
// budget of fetches they share.
//
// [Blob.Fill] is all that a transport needs: it returns when a range is filled,
// or with the reason why not. However many readers ask for a span, one fetch
// brings it, and each of them is answered exactly once. Spans that lie together
// are fetched together, with those that the source passes on its way. A fetch
// outlives the reader that began it while others wait; the last one to give up
// cancels it.
//
// A [Transport] carries the kernel's requests here and the answers back, in one
// of the kernel's dialects; its contract is written there, and package
// transporttest checks it. What transports have in common is [Requests]. A [Driver]
// opens one, and [Drivers] chooses. How a transport outlives the daemon is the subject
// of package hold.
//
// # Which fetch runs
//
// A fetch needs a place. The node has so many, and a group of blobs, those of
// one registry host, may have three quarters of them. Besides, each group has
// one place of its own, which only readers get. So whatever other hosts do, dead
// or slow, a reader of this one has at least that place, and fetches at once are
// at most the node's places and one for each group. Within a group, what readers
// wait for goes before what no reader waits for; groups take turns. A fetch that
// waits before it tries again gives its place back meanwhile, see [Sleep].
//
// A fetch's time runs from when it first gets a place. Until then only the
// reader's own context ends its wait.
//
// # What is filled, and how we know
//
// Bytes are written to the blob file first, then the span's bit is set in the
// running record, so a daemon that sees the bit finds the bytes. That order holds for
// a process that dies at any instruction, since both are in the page cache by
// then and the kernel outlives us. It does not hold for a machine that loses
// power. Therefore the running record is trusted only under the boot ID that it
// was written in. Beside it is a durable record: the bits as they were before a
// sync of the blob file, written after it under a temporary name, synced and
// renamed. After a reboot only that one counts. A bit in it was set before the
// sync began, so its bytes were written before, so the sync covered them. A torn
// durable record has a wrong checksum and counts as empty; then every span is
// fetched again, into the same places.
//
// A stop does not sync: the running record is enough for the next daemon of this
// boot, and syncing hundreds of blobs takes longer than a service manager waits.
// Package snapshot calls [Engine.Sync] and [Blob.Sync] from time to time; after a
// reboot the spans are there that the last of these covered.
//
// # A failed sync
//
// A page that could not be written to the disk is clean for the kernel: it may
// drop it, and then reads bring what the disk has, which is zeros. The next sync
// succeeds. So after a failed sync of a blob file nothing but what was durable
// before is believed: the other spans are holes again, in memory and in the
// running record, before Sync returns with a [LostError], and are fetched and
// written again. A span whose bytes were being written meanwhile is written once
// more.
//
// The kernel reports each failure to the processes that have the file open. Once it
// has been reported, a process that opens the file later is not told. A daemon that dies between
// the kernel's word and its own would take it along. So before a sync the running
// record is marked as doubtful, and the mark is synced; it is taken away when the
// outcome is dealt with. A daemon that opens a doubtful record believes the
// durable one alone. Where the record cannot be written back either, the mark stays. Between
// two synced marks bits are only added to the running record, so an old page of
// it, which the same disk may give back, says less than the truth, never more.
//
// The kernel also writes pages by itself, and that fails in the same way. Open,
// Close and, once a second, Fill ask about it, which takes no I/O
// (sync_file_range(2), which ends in mm/filemap.c's
// file_check_and_advance_wb_err), with the record marked, and then do as after a
// failed sync. Not covered: a reader who comes in that second, if the kernel has
// dropped the page as well; and a failure that the kernel met while no process
// had the blob file open, if it has also dropped the inode since. A marked or
// mounted blob's inode it keeps.
//
// # Which file the records are of
//
// Both records name the blob file by what it does not share with another file
// of its name, before or after: inode number, time of birth and inode generation,
// see identity.go. Where the blob file was removed, replaced, copied or restored
// with its records beside it, they are not believed, and every span is a hole.
// A blob file of size zero is new, or has lost its bytes: its records are removed
// before it gets its size. One of another size is not ours, and a process may have
// it mapped: it is left alone, and Open fails with [ForeignFileError].
//
// # Failure
//
// A failed fill leaves the span a hole, and the next reader tries again. Bytes
// that a source did not verify do not exist here. A full disk fails the fill, and
// so does a record that cannot be written.
//
// # Concurrency
//
// Everything is safe for concurrent use.
package ondemand
