// Package verdict remembers what scanners said about files, so that a file is
// scanned once and not at every open.
//
// It owns: which verdict may be remembered, for whom and for how long, the bound
// on what that costs, and who scans when several openers want the same file at
// once. It must not own: what identifies a file or which layer it belongs to
// (internal/layer fills [FileKey] and [Scope]), what a verdict leads to
// (internal/guard), how verdicts combine (package scanner, which a [View]
// asks), or anything on disk: package verdict/store is next, behind [Journal].
//
// # What is kept
//
// A [Scope] is an image layer or one container. In it, a file is known by its
// [FileKey], and has one verdict per scanner, each tied to the generation that
// it came from. Only Clean and Malicious verdicts that their scanner marked and
// whose generation is known are kept; nothing born of an error, a timeout or
// overload ever is. Verdicts are kept per scanner and combined when they are
// looked up, so that one tenant's weak scanner never vouches for another's
// container. A scanner is known by its name and by a hash of its driver's
// configuration. Of two contradicting verdicts of one generation on one content
// the malicious one stands, in whichever order they come.
//
// A miss is always safe: it costs a scan. Everything here that must give way to
// something (a bound, a race, a full queue) gives way to a miss.
//
// # Readers and writers
//
// [Cache.Lookup] takes no lock, allocates nothing and writes to no memory that
// another [Lane] writes to, but for marking a file as used once per epoch.
// Entries never change once they can be seen: a writer replaces them. A table
// that is being rebuilt or shortened can hide an entry from a reader, never show
// a wrong one, because each entry carries its key.
//
// Lock order: Cache.evicting, registry.mu, shard.mu; nothing is taken under
// shard.mu. flights.mu and Scanner.mu are leaves. A [Journal] is called without
// any lock held.
package verdict
