// Package lease holds read leases on open files and hears when one is broken.
//
// A read lease (F_SETLEASE, fcntl(2)) can only be had on a file that nobody has
// open for writing. While it is held, whoever opens the file for writing, or
// truncates it, waits until the holder lets go. So a lease is the proof that a
// file does not change, and its break is the moment before it may.
//
// It owns: leased descriptors, the thread that is told of breaks, and the question
// whether a file has a writer. It must not own: what a lease is for. Who takes one
// gives a [Breaker], which puts things in order before the writer gets in;
// internal/guard removes kernel marks there.
//
// Rules, with their sources in docs/kernel.md:
//
//   - The break comes as a signal with the descriptor's number (F_SETSIG). Go's
//     runtime handles signals itself, so the signal is blocked on one locked thread,
//     which owns every lease (F_SETOWN_EX with F_OWNER_TID) and reads it from a
//     signalfd.
//   - If the queue of signals overflows (RLIMIT_SIGPENDING), the kernel sends a plain
//     SIGIO: then every lease is looked at.
//   - The writer waits while [Breaker.Broken] runs. It must not block, and open
//     nothing. What must not overlap with it is done in [Lease.With].
//   - A lease that is not given back within fs.lease-break-time (45 s) is taken away
//     by the kernel: the thread must not be held up.
//   - On an overlay a lease knows of writers with a descriptor, and not of those that
//     only kept a mapping: the backing inode does (layer.Rootfs.OpenUpper).
//
// Lock order: Lease.mu, then Holder.mu. Broken is called under Lease.mu, Ended under none.
package lease
