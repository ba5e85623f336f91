package layer

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKernelUpperTwins: copied-up files that are equal in all that the kernel tells
// but their origin, or even in that, are not taken for each other. Without the
// comparison of origin and inode number, it fails.
func TestKernelUpperTwins(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1), options: ",index=off"}
	for _, name := range []string{"one/f", "two/f", "link/a"} {
		write(t, filepath.Join(s.lower[0], name), "content")
	}
	must(t, os.Link(s.lower[0]+"/link/a", s.lower[0]+"/link/b"))
	s.mount(t)
	pairs := [][2]string{{"one/f", "two/f"}, {"link/a", "link/b"}}
	for _, pair := range pairs {
		overlay, own := s.wantUpperAfterWrite(t, pair[0])
		_, other := s.wantUpperAfterWrite(t, pair[1])
		var f facts
		must(t, f.observe(overlay))
		behind, err := f.handle.backing()
		must(t, err)
		if reason, err := s.rootfs.isBehind(&f, behind, other); reason != OtherFile || err != nil {
			t.Errorf("%v: other times: %s, %v, want other-file", pair, reason, err)
		}
		// As if both had been made within one tick of the clock.
		f.stat = withTimes(f.stat, stateOf(t, other))
		if reason, err := s.rootfs.isBehind(&f, behind, other); reason != OtherFile || err != nil {
			t.Errorf("%v: %s, %v, want other-file", pair, reason, err)
		}
		f.stat = withTimes(f.stat, stateOf(t, own))
		if reason, err := s.rootfs.isBehind(&f, behind, own); reason != InUpper || err != nil {
			t.Errorf("%v: its own: %s, %v, want in-upper", pair, reason, err)
		}
		if has, err := s.rootfs.hasOrigin(own, &f); err != nil || has != (pair[0] == "one/f") {
			t.Errorf("%s: has an origin: %t, %v", pair[0], has, err)
		}
	}
}

// TestKernelUpperPosing: a file without an origin that even has the inode number
// that the overlay shows, as one on another filesystem can have.
func TestKernelUpperPosing(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1)}
	write(t, s.lower[0]+"/file", "content")
	s.mount(t)
	overlay, own := s.wantUpperAfterWrite(t, "file")
	write(t, s.merged+"/born", "CONTENT")
	_, posing := s.wantUpper(t, "born")
	var f facts
	must(t, f.observe(overlay))
	behind, err := f.handle.backing()
	must(t, err)
	for name, change := range map[string]func(f *facts){
		"birth": func(f *facts) { f.stat.Btime.Nsec++ }, "change": func(f *facts) { f.stat.Ctime.Nsec++ }, "size": func(f *facts) { f.stat.Size++ },
	} {
		other := f
		change(&other)
		if reason, err := s.rootfs.isBehind(&other, behind, own); reason != OtherFile || err != nil {
			t.Errorf("another %s: %s, %v, want other-file", name, reason, err)
		}
	}
	state := stateOf(t, posing)
	f.stat = withTimes(f.stat, state)
	f.stat.Ino = state.Ino
	if reason, err := s.rootfs.isBehind(&f, behind, posing); reason != OtherFile || err != nil {
		t.Errorf("%s, %v, want other-file", reason, err)
	}
}

// TestKernelUpperStill: a change between the proof and the open is noticed.
func TestKernelUpperStill(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1)}
	s.mount(t)
	write(t, s.merged+"/born", "content")
	overlay, upper := s.wantUpper(t, "born")
	id := identifyFD(t, overlay)
	if reason, err := s.rootfs.still(overlay, id, upper); reason != InUpper || err != nil {
		t.Errorf("%s, %v, want in-upper", reason, err)
	}
	if reason, err := s.rootfs.still(overlay, id, open(t, s.merged)); reason != Changed || err != nil {
		t.Errorf("another file behind: %s, %v, want changed", reason, err)
	}
	must(t, pwrite(s.merged+"/born", "CONTENT", 0))
	if reason, err := s.rootfs.still(overlay, id, upper); reason != Changed || err != nil {
		t.Errorf("written to: %s, %v, want changed", reason, err)
	}
}

func (s *stack) wantUpperAfterWrite(t *testing.T, name string) (overlay, upper int) {
	t.Helper()
	must(t, pwrite(filepath.Join(s.merged, name), "CONTENT", 0))
	return s.wantUpper(t, name)
}

func stateOf(t *testing.T, fd int) unix.Statx_t {
	t.Helper()
	var f facts
	must(t, f.observe(fd))
	return f.stat
}

// withTimes returns a with the times of b.
func withTimes(a, b unix.Statx_t) unix.Statx_t {
	a.Btime, a.Ctime = b.Btime, b.Ctime
	return a
}

// TestKernelUpperIndexed: where the overlay keeps hard links, a name that was not
// copied up itself shows what was written under another; it is not found.
func TestKernelUpperIndexed(t *testing.T) {
	s := &stack{lower: layerDirs(t, 1), options: ",index=on"}
	write(t, s.lower[0]+"/a", "content")
	must(t, os.Link(s.lower[0]+"/a", s.lower[0]+"/b"))
	s.mount(t)
	s.wantUpperAfterWrite(t, "a")
	if _, reason := openUpper(t, s.rootfs, open(t, s.merged+"/b"), "/b"); reason != NotInUpper {
		t.Errorf("b: %s, want not-in-upper", reason)
	}
}
