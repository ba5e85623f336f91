package layer

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKernelUnpackedAgain: a layer that was removed and unpacked again at the same
// path, with the same digest, is another layer, and its files other files.
func TestKernelUnpackedAgain(t *testing.T) {
	dirs := layerDirs(t, 1)
	fixed := resolverFunc(func([]string) ([]string, error) { return []string{sha("1")}, nil })
	seen, seenFiles, inodes := map[Layer]bool{}, map[Identity]bool{}, map[uint64]bool{}
	for round := range 20 {
		// Nothing of a round stays open, so that its inode numbers are free again.
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			must(t, os.RemoveAll(dirs[0]))
			write(t, dirs[0]+"/file", "content")
			s := (&stack{lower: dirs}).mount(t, fixed)
			s.wantPristine(t, "file", 0)
			l, id := s.rootfs.Layers()[0], identify(t, s.merged+"/file")
			if l.Digest != sha("1") || seen[l] || seenFiles[id] {
				t.Errorf("layer or file is the same as in an earlier round: %v, %v", l, id)
			}
			var st unix.Stat_t
			must(t, unix.Stat(dirs[0], &st))
			seen[l], seenFiles[id], inodes[st.Ino] = true, true, true
		})
	}
	t.Logf("%d inode numbers in %d rounds", len(inodes), len(seen))
}

// TestKernelRemovedUnderneath: a container whose layer was removed, and unpacked
// again, while it runs still shows the old files; they are not the new layer's.
func TestKernelRemovedUnderneath(t *testing.T) {
	dirs := layerDirs(t, 1)
	write(t, dirs[0]+"/file", "content")
	s := (&stack{lower: dirs}).mount(t)
	fd := open(t, s.merged+"/file")
	must(t, os.RemoveAll(dirs[0]))
	if a := attributeFD(t, s.rootfs, fd); a.Reason != NotInLayers {
		t.Errorf("removed: %s, want not-in-layers", a.Reason)
	}
	write(t, dirs[0]+"/file", "content")
	if a := attributeFD(t, s.rootfs, fd); a.Reason != OtherFile {
		t.Errorf("unpacked again: %s, want other-file", a.Reason)
	}
}
