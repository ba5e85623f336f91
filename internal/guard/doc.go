// Package guard is the gate itself: it turns an announced container into marks,
// follows it until it exits, and turns each permission event into one answer.
//
// The way of an event, in files:
//
//	announce.go   an announcement becomes a guarded container
//	process.go    the container's first process, held by pidfd; its root directory
//	mounts.go     its mounts, and which mark each of them gets
//	container.go  events on the reader thread: answered at once, or handed on
//	lineage.go    which layers and which container a file's verdicts hold for
//	task.go       one opener that waits for a scan: worker and deadline race for it
//	scan.go       the worker's part: ask the memory, join a scan, or scan
//	proof.go      what must hold before and after a scan for it to be remembered
//	marks.go      which clean files the kernel is to let through: wishes and who grants them
//	mark.go       one such file: its lease, its ignore mark, its writer
//	marktable.go  all of them: the bounds, whose turn it is to go, what flushes them
//	generations.go  what happens when a scanner knows more
//	ahead.go      layers are scanned before their files are opened
//	explain.go    what the next open of a file would be answered
//	pool.go       a tenant's queue and workers
//	crew.go       workers whose scan does not come back, and who takes their place
//	waiting.go    which openers wait, and for how long
//	held.go       how many events may be kept, and how many of them a tenant may have
//	shed.go       marks give way when events need their descriptors
//	watch.go      whether tenants' events go on
//	policy.go     what a tenant's policy makes of a verdict
//	record.go     what is told afterwards
//
// guard owns containers, tenants at run time, and every decision. It must not
// own scanners (cmd/assayd builds and closes them), records (internal/audit
// takes them after the answer) or system calls of fanotify.
//
// Rules:
//
//   - An event is answered before anything is recorded or logged: the log may be
//     the blocked opener's.
//   - HandleEvent runs on a reader thread while an opener waits. It takes no lock
//     that anything slow holds, and allocates nothing for an event that it
//     answers itself.
//   - No path of a container is ever opened, except with O_PATH, which raises no
//     events. Paths from events are for records only.
//
// Lock order: container.placing, Guard.mu, sharedGroup.mu, then container.mu,
// marks.mu (and a lease's lock under it), execPairs.mu, task.armed, crew.mu and
// waitingList.mu, which are held for a few lines; fanotify's own lock comes after all
// of them. No lock is held while a scanner runs but policy.inUse for reading. Only
// container.placing is held while a filesystem is asked.
package guard
