// Package ahead scans the layers of images before anybody opens their files.
//
// It owns: which layers wait, the order of the files (the cheapest first), when to
// hold back, the pause, and the progress. It must not own: where layers are and what
// identifies their files (internal/layer), what is known already and who scans
// (internal/guard, behind [Scans]), or what becomes of the verdicts.
//
// One goroutine works through the queue, a file at a time, on a thread of its own
// with idle I/O priority. It has the usual CPU priority on purpose: a thread that
// the scheduler starves can be holding one of the Go runtime's own locks, for which
// the event readers would then wait. Instead it holds back while openers wait
// ([Scans.Busy]), and rests between files.
//
// Runner.mu is a leaf.
package ahead
