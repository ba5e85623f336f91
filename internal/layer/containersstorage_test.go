package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// id64 and sha are ids and digests of one repeated digit.
func id64(c string) string { return strings.Repeat(c, 64) }
func sha(c string) string  { return "sha256:" + id64(c) }

// entry is a layer as containers-storage 1.43 writes it.
func entry(id, parent, diff string) string {
	return fmt.Sprintf(`{"id":%q,"parent":%q,"created":"2026-11-02T03:04:05.000006Z","compressed-diff-digest":%q,"compressed-size":9,"diff-digest":%q,"diff-size":1536,"compression":2,"uidset":[0],"gidset":[0]}`,
		id, parent, sha("e"), diff)
}

func TestParseLayers(t *testing.T) {
	good := "[" + entry(id64("a"), "", sha("1")) + "," + entry(id64("b"), id64("a"), sha("2")) + "," +
		`{"id":"` + id64("c") + `","flags":{"incomplete":true},"diff-digest":"` + sha("3") + `"},` +
		`{"id":"` + id64("d") + `","names":["container"]}]`
	got, err := parseLayers([]byte(good))
	if err != nil || len(got.digests) != 2 || got.digests[id64("a")] != sha("1") || got.digests[id64("b")] != sha("2") ||
		len(got.parents) != 4 || got.parents[id64("b")] != id64("a") {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := parseLayers([]byte(" [ ] \n")); err != nil || len(got.parents) != 0 {
		t.Errorf("no layers: %v, %v", got, err)
	}
	for name, bad := range map[string]string{
		"nothing":          "",
		"cut short":        good[:len(good)-1],
		"cut in an entry":  good[:100],
		"an object":        entry(id64("a"), "", sha("1")),
		"null":             "null",
		"more after it":    good + "[]",
		"an id twice":      "[" + entry(id64("a"), "", sha("1")) + "," + entry(id64("a"), "", sha("2")) + "]",
		"no id":            "[" + entry("", "", sha("1")) + "]",
		"an id with dots":  "[" + entry("../"+id64("a")[3:], "", sha("1")) + "]",
		"no digest's form": "[" + entry(id64("a"), "", "sha256:12") + "]",
		"a parent's form":  "[" + entry(id64("a"), "../x", sha("1")) + "]",
		"capital letters":  "[" + entry(id64("a"), "", sha("A")) + "]",
		"a list in a list": "[[]]",
		"a number":         "[1]",
		"a digest's type":  `[{"id":"` + id64("a") + `","diff-digest":1}]`,
	} {
		if got, err := parseLayers([]byte(bad)); err == nil {
			t.Errorf("%s: %v, want an error", name, got)
		}
	}
}

// FuzzParseLayers: only ids and digests come out, whatever is in the file.
func FuzzParseLayers(f *testing.F) {
	for _, seed := range []string{
		"[" + entry(id64("a"), "", sha("1")) + "]", "[]", "null", "[{}]", strings.Repeat("[", 20000), `[{"ID":"` + id64("a") + `"}]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		layers, err := parseLayers(data)
		if err != nil && (layers.digests != nil || layers.parents != nil) {
			t.Error("layers with an error")
		}
		for id, digest := range layers.digests {
			if !isLayerID(id) || !isDigest(digest) {
				t.Errorf("%q: %q", id, digest)
			}
		}
		for id, parent := range layers.parents {
			if !isLayerID(id) || parent != "" && !isLayerID(parent) {
				t.Errorf("%q: parent %q", id, parent)
			}
		}
	})
}

// storage makes ROOT with layers.json as podman has it.
func storage(t *testing.T, layers ...string) (root string) {
	t.Helper()
	root = t.TempDir()
	replace(t, filepath.Join(root, "overlay-layers/layers.json"), "["+strings.Join(layers, ",")+"]")
	return root
}

// replace writes a file as the runtimes do: a new one over the old one.
func replace(t *testing.T, name, content string) {
	t.Helper()
	write(t, name+".tmp", content)
	must(t, os.Rename(name+".tmp", name))
}

func wantDigests(t *testing.T, r Resolver, directories []string, want ...string) {
	t.Helper()
	got, err := r.Digests(t.Context(), directories)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

// TestKernelContainersStorage: digests follow the file, which is read again when
// it is another one. (It needs root, which the files must belong to.)
func TestKernelContainersStorage(t *testing.T) {
	root := storage(t, entry(id64("a"), "", sha("1")), entry(id64("b"), id64("a"), sha("2")))
	dir := func(id string) string { return root + "/overlay/" + id + "/diff" }
	c := NewContainersStorage(hostTree(t))
	dirs := []string{
		dir(id64("b")), dir(id64("a")), dir(id64("c")), root + "/other/" + id64("a") + "/diff",
		root + "/overlay/" + id64("a"), "/diff", "diff", dir("l"),
	}
	wantDigests(t, c, dirs, sha("2"), sha("1"), "", "", "", "", "", "")
	replace(t, root+"/overlay-layers/layers.json", "["+entry(id64("c"), "", sha("3"))+"]")
	wantDigests(t, c, dirs[:3], "", "", sha("3"))
	write(t, root+"/overlay-layers/volatile-layers.json", "["+entry(id64("a"), "", sha("4"))+"]")
	wantDigests(t, c, dirs[:3], "", sha("4"), sha("3"))
	must(t, os.WriteFile(root+"/overlay-layers/volatile-layers.json", []byte("[]"), 0o644)) // in place
	wantDigests(t, c, dirs[:3], "", "", sha("3"))
	for range maxStorages + 1 {
		other := storage(t, entry(id64("a"), "", sha("5")))
		wantDigests(t, c, []string{other + "/overlay/" + id64("a") + "/diff"}, sha("5"))
	}
	if n := len(c.read); n > maxStorages {
		t.Errorf("%d files are kept, want at most %d", n, maxStorages)
	}
}

// TestKernelContainersStorageOfCRIO: as CRI-O 1.37 leaves it on a node with a
// read-only store of images (additionalimagestores): the layers of one stack are in
// two storages, and volatile-layers.json has the containers' own, which have no digest.
// An image's layer is never volatile.
func TestKernelContainersStorageOfCRIO(t *testing.T) {
	readOnly := storage(t, entry(id64("a"), "", sha("1")), entry(id64("b"), id64("a"), sha("2")))
	main := storage(t, entry(id64("c"), id64("b"), sha("3")))
	write(t, main+"/overlay-layers/volatile-layers.json",
		`[{"id":"`+id64("d")+`","parent":"`+id64("c")+`","created":"2026-11-02T03:04:05.000006Z","uidset":[0],"gidset":[0]}]`)
	c := NewContainersStorage(hostTree(t))
	dir := func(root, id string) string { return root + "/overlay/" + id + "/diff" }
	wantDigests(t, c,
		[]string{dir(main, id64("d")), dir(main, id64("c")), dir(readOnly, id64("b")), dir(readOnly, id64("a")), dir(main, id64("a"))},
		"", sha("3"), sha("2"), sha("1"), "")
}

// TestKernelContainersStorageReadsOnce: an unchanged file is not parsed again.
func TestKernelContainersStorageReadsOnce(t *testing.T) {
	root := storage(t, entry(id64("a"), "", sha("1")))
	c := NewContainersStorage(hostTree(t))
	dirs := []string{root + "/overlay/" + id64("a") + "/diff"}
	wantDigests(t, c, dirs, sha("1"))
	name := root + "/overlay-layers/layers.json"
	c.read[name] = layersFile{id: c.read[name].id, digests: map[string]string{id64("a"): sha("9")}}
	wantDigests(t, c, dirs, sha("9"))
}

// TestKernelContainersStorageRefuses: what others could have written, what is no
// file, and what does not parse gives an error and no digest.
func TestKernelContainersStorageRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(file string) error
		want  string
	}{
		"someone else's":      {func(f string) error { return os.Chown(f, 1000, 0) }, "must belong to root"},
		"writable by a group": {func(f string) error { return os.Chmod(f, 0o664) }, "must belong to root"},
		"writable by all":     {func(f string) error { return os.Chmod(f, 0o646) }, "must belong to root"},
		"a link":              {func(f string) error { return errors.Join(os.Rename(f, f+".x"), os.Symlink(f+".x", f)) }, "symbolic links"},
		"a directory":         {func(f string) error { return errors.Join(os.Remove(f), os.Mkdir(f, 0o755)) }, "not the kind of file"},
		"a pipe":              {func(f string) error { return errors.Join(os.Remove(f), unix.Mkfifo(f, 0o600)) }, "not the kind of file"},
		"gone":                {os.Remove, "no such file"},
		"broken":              {func(f string) error { return os.WriteFile(f, []byte("[{"), 0o644) }, "entry 0"},
	} {
		t.Run(name, func(t *testing.T) {
			root := storage(t, entry(id64("a"), "", sha("1")))
			must(t, c.spoil(root+"/overlay-layers/layers.json"))
			got, err := NewContainersStorage(hostTree(t)).Digests(t.Context(), []string{root + "/overlay/" + id64("a") + "/diff"})
			if got != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, %v, want an error with %q", got, err, c.want)
			}
		})
	}
}

// TestKernelStoredLimit: no more is read than may be there.
func TestKernelStoredLimit(t *testing.T) {
	name := t.TempDir() + "/file"
	write(t, name, "0123456789")
	for limit, want := range map[int64]string{10: "0123456789", 9: ""} {
		f, err := hostTree(t).openStored(name, unix.S_IFREG)
		must(t, err)
		data, err := f.read(limit)
		if string(data) != want || (err == nil) != (want != "") {
			t.Errorf("limit %d: %q, %v", limit, data, err)
		}
		must(t, f.Close())
	}
}
