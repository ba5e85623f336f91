// Package layer says which file a descriptor is, and which layer of an image it
// comes from: an opaque identity of its content that no tenant can forge, and the
// layer only where the file is proven to be as the layer has it. It also lists the
// files of layers ahead of their first open.
//
// In files:
//
//	identity.go    descriptor -> Identity, on the event path
//	handle.go      what the kernel's handle of an overlay file tells
//	options.go     the options of an overlay, as mountinfo shows them
//	host.go        the host's directories, and the identity of one
//	locate.go      those options -> directories
//	rootfs.go      a container's overlay -> its layers, topmost first
//	attribute.go   descriptor -> layer, or why none
//	upper.go       descriptor -> its inode in the upper directory, or why none
//	reason.go      the reasons why not, a closed set
//	predict.go     a layer's file on the host -> the Identity that overlays will report
//	tree.go        a layer's directory, and opening the files in it
//	walk.go        which files it has
//	images.go      digests and images -> directories
//	resolver.go    directories -> digests: containersstorage.go, docker.go, containerd.go
//
// It owns the choice of what identifies content on an overlay, where inode
// numbers and handles survive a copy-up (docs/kernel.md). It must not own
// verdicts (internal/verdict keeps them, by identity and layer), containers or
// policies; internal/guard asks it, with descriptors of events.
//
// Rules:
//
//   - Nothing of a container is opened by a path but with O_PATH, which raises no
//     events, and that only below directories of the host. [Rootfs.OpenUpper]
//     alone opens a file for reading, when it is known to be a regular one. Paths
//     are hints: only the equality of two identities proves anything.
//   - A [Resolver] reads files of the runtime's storage, and may wait for locks and
//     for the runtime: ask it when a container is announced, never for an event.
//   - Nothing is held: layers and upper directories are opened anew each time, by a
//     path that was freed of symbolic links once. A held descriptor would pin the
//     mount it is on (a layer that is a loop mount, a disk of the container's own)
//     and 127 of them for each container would not fit the descriptor limit. A
//     [Tree] holds its layer's, for as long as its files are read.
//
// An identity proves nothing where others than this kernel change files: on NFS,
// CIFS, FUSE, 9p and virtiofs the times are the server's. Nothing must be
// remembered there.
package layer
