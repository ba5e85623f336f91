// Package store keeps the verdicts on files of image layers on disk, so that a
// restart or a reboot does not scan them again.
//
// It owns: the file, its format, and when it is written. It must not own what is
// worth keeping: package verdict decides that and tells a [Store], which is its
// journal. Whatever fails here, the cache works on without it; whatever does not
// verify is not believed.
//
// # The file
//
// One file, "verdicts", is only ever appended to: batches of records, each batch
// a block that stands for itself, with its own dictionary of layers, scanners,
// generations and signatures. A block has a checksum over its header, which also
// names the file and the block's place in it, and one over its content. Each
// record has a checksum over itself and over the words that it refers to, so
// that a wrong dictionary cannot lend a verdict to another scanner or layer.
// What is damaged is skipped block by block; a block that is lost costs scans
// and nothing else, because no record takes anything back but the drop of a
// layer, and a dropped layer is never asked for again.
//
// The file is rewritten from the cache, the hottest layers first, when it has
// grown well beyond what the cache holds, when something was lost, and when it
// reaches half of its bound; so file and rewritten file together stay within it.
//
// # Why not a database
//
// Everything is read once, at the start, and never looked up on disk again, so
// an index is worth nothing. bbolt (go.etcd.io/bbolt 1.5.0) maps its file: one
// that was cut short ends the process by a fault that cannot be recovered from,
// and values would need checksums of their own all the same. A million records
// took it 120 MB and 45 s to write in batches of 4,096, against 44 MB and 6 s
// here; reading them into a plain map took as long as it takes here to have them
// in the cache.
//
// # Losses
//
// [Store.Append] never waits: what does not fit into the queue is counted and
// lost to the file until it is rewritten. A kill loses at most what was not yet
// written; a power failure at most the batch that was being written.
//
// One goroutine writes; it alone touches the file after Open. Store.mu is a leaf.
package store
