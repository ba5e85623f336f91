// Package fanotify is the only place with fanotify system calls: groups, marks,
// permission events and the threads that read them.
//
// It owns event descriptors until they are answered and released, and it owns
// the promise that every permission event is answered exactly once: an event
// that a [Handler] neither answers nor takes is denied when the handler returns,
// and a [Permission] that is released unanswered is denied first. It must not
// know containers, tenants, policies or scanners; internal/guard decides, and
// gets the event next.
//
// Rules that the code keeps, with their sources in docs/kernel.md:
//
//   - A response names its event by descriptor number. So a number is closed only
//     after its event was answered; otherwise the kernel could give it to the next
//     event, and one response would meet the wrong opener.
//   - Closing the last descriptor of a group allows everything that is pending. So
//     a group's descriptor is closed only when nobody uses it any more (a
//     reference count), never under a worker that is about to answer.
//   - The opener waits while the handler runs. Handlers run on the reader thread
//     and must not block, allocate on the allow path, or open anything.
//
// Self-deadlocks: a process that opens a path on a mount that one of its own
// groups watches waits for its own reader. Nothing in this package opens a path
// but /proc/self and scratch objects of the feature probes. Event descriptors
// are exempt: reading them raises no events.
//
// Lock order: Readers.mu, then nothing. The event path takes no lock.
package fanotify
