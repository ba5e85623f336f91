package layer

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// imageEntry is an image as containers-storage 1.43 writes it.
func imageEntry(id, digest, top string, names ...string) string {
	return fmt.Sprintf(`{"id":%q,"digest":%q,"names":["%s"],"layer":%q,"metadata":"{}","big-data-names":["manifest"],"created":"2026-11-02T03:04:05Z"}`,
		id, digest, strings.Join(names, `","`), top)
}

func TestParseImages(t *testing.T) {
	good := "[" + imageEntry(id64("1"), sha("2"), id64("a"), "docker.io/library/x:1", "x:2") + `,{"id":"other"}]`
	got, err := parseImages([]byte(good))
	if err != nil || len(got) != 2 || got[0].Top != id64("a") {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, want := range map[string]bool{
		id64("1"): true, sha("2"): true, "docker.io/library/x:1": true, "x:2": true, "x:1": false, "": false, "metadata": false,
	} {
		if got[0].is(name) != want {
			t.Errorf("%q: %t, want %t", name, !want, want)
		}
	}
	if got[1].is("") {
		t.Error("an image without digest and names is called nothing")
	}
	for name, bad := range map[string]string{
		"nothing":         "",
		"null":            "null",
		"cut short":       good[:len(good)-1],
		"more after it":   good + "1",
		"no id":           "[{}]",
		"a layer's form":  "[" + imageEntry(id64("1"), "", "../a") + "]",
		"a digest's form": "[" + imageEntry(id64("1"), "sha256:1", "") + "]",
		"a name's type":   `[{"id":"x","names":[1]}]`,
	} {
		if got, err := parseImages([]byte(bad)); err == nil || got != nil {
			t.Errorf("%s: %+v, %v, want an error", name, got, err)
		}
	}
}

// FuzzParseImages: only layer ids that are safe in paths come out, and no error
// comes with images.
func FuzzParseImages(f *testing.F) {
	for _, seed := range []string{
		"[" + imageEntry(id64("1"), sha("2"), id64("a"), "x:1") + "]", "[]", "null", "[{}]", `[{"id":"x","layer":"/"}]`,
		strings.Repeat("[", 20000), `[{"ID":"x","Layer":"` + id64("A") + `"}]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		images, err := parseImages(data)
		if err != nil && images != nil {
			t.Error("images with an error")
		}
		for _, i := range images {
			if i.ID == "" || i.Top != "" && !isLayerID(i.Top) || i.Digest != "" && !isDigest(i.Digest) {
				t.Errorf("%+v", i)
			}
		}
	})
}

func TestAncestry(t *testing.T) {
	parents := map[string]string{"c": "b", "b": "a", "a": "", "x": "gone", "o": "o"}
	if got, err := ancestry(parents, "c"); err != nil || !slices.Equal(got, []string{"c", "b", "a"}) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := ancestry(parents, ""); err != nil || len(got) != 0 {
		t.Errorf("no layers: %q, %v", got, err)
	}
	if got, err := ancestry(parents, "x"); !errors.Is(err, ErrUnknownLayer) {
		t.Errorf("a parent that is gone: %q, %v", got, err)
	}
	if got, err := ancestry(parents, "o"); err == nil {
		t.Errorf("a circle: %q, want an error", got)
	}
}

func pathsOf(dirs []Directory) string {
	var b strings.Builder
	for _, d := range dirs {
		fmt.Fprintf(&b, "%s=%s ", strings.TrimPrefix(d.Digest, "sha256:")[:1], filepath.Base(filepath.Dir(d.Path))[:1])
	}
	return strings.TrimSpace(b.String())
}

// TestKernelImages: digests and images lead to the layers' directories.
func TestKernelImages(t *testing.T) {
	root := storage(t, entry(id64("a"), "", sha("1")), entry(id64("b"), id64("a"), sha("2")), entry(id64("c"), "", sha("2")),
		entry(id64("d"), id64("f"), sha("3")), entry(id64("e"), "", sha("4")))
	for _, id := range []string{"a", "b", "c", "d"} {
		mkdir(t, root+"/overlay/"+id64(id)+"/diff")
	}
	write(t, root+"/overlay-images/images.json", "["+strings.Join([]string{
		imageEntry(id64("1"), sha("7"), id64("b"), "good:1", "same:1"), imageEntry(id64("2"), sha("8"), id64("d"), "broken:1"),
		imageEntry(id64("3"), sha("9"), "", "empty:1"), imageEntry(id64("4"), sha("9"), id64("e"), "unpacked:1", "same:1"),
	}, ",")+"]")
	h := hostTree(t)
	c := NewContainersStorage(h)
	for name, want := range map[string]string{"good:1": "2=b 1=a", id64("1"): "2=b 1=a", sha("7"): "2=b 1=a", "empty:1": ""} {
		dirs, err := c.Image(root, name)
		if got := pathsOf(dirs); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, want)
		}
		for _, d := range dirs {
			if id, err := h.identify(d.Path); err != nil || id != d.Dir {
				t.Errorf("%s: %v, %v", d.Path, id, err)
			}
		}
	}
	for name, want := range map[string]error{"good": ErrUnknownImage, "": ErrUnknownImage, "broken:1": ErrUnknownLayer, "unpacked:1": nil, "same:1": nil} {
		if dirs, err := c.Image(root, name); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %s, %v, want an error", name, pathsOf(dirs), err)
		}
	}
	for digest, want := range map[string]string{sha("1"): "1=a", sha("2"): "2=b 2=c"} {
		if dirs, err := c.LayersByDigest(root, digest); err != nil || pathsOf(dirs) != want {
			t.Errorf("%s: %s, %v, want %s", digest, pathsOf(dirs), err, want)
		}
	}
	for _, digest := range []string{"", sha("5"), sha("4")} {
		if dirs, err := c.LayersByDigest(root, digest); err == nil {
			t.Errorf("%s: %s, want an error", digest, pathsOf(dirs))
		}
	}
	write(t, root+"/overlay-images/images.json", "[")
	if dirs, err := c.Image(root, "good:1"); err == nil {
		t.Errorf("a broken file: %s, want an error", pathsOf(dirs))
	}
	if dirs, err := c.Image(root+"/nothing", "good:1"); err == nil {
		t.Errorf("no storage: %s, want an error", pathsOf(dirs))
	}
}

// TestKernelDockerByDigest: the same for docker's storage, digests only.
func TestKernelDockerByDigest(t *testing.T) {
	db := database{t.TempDir()}
	low := db.add(t, "a-low", sha("1"), "")
	db.add(t, "b-top", sha("2"), low)
	db.add(t, "c-other", sha("2"), "")
	for _, id := range []string{"a-low", "b-top", "c-other"} {
		mkdir(t, db.root+"/overlay2/"+id+"/diff")
	}
	d := NewDocker(hostTree(t))
	for digest, want := range map[string]string{sha("1"): "1=a", sha("2"): "2=b 2=c"} {
		if dirs, err := d.LayersByDigest(t.Context(), db.root, digest); err != nil || pathsOf(dirs) != want {
			t.Errorf("%s: %s, %v, want %s", digest, pathsOf(dirs), err, want)
		}
	}
	if dirs, err := d.LayersByDigest(t.Context(), db.root, sha("3")); !errors.Is(err, ErrUnknownLayer) {
		t.Errorf("%s, %v, want no such layer", pathsOf(dirs), err)
	}
}

func TestImageIs(t *testing.T) {
	image := storedImage{ID: id64("a"), Digest: sha("d"), Names: []string{"localhost/app:v1"}}
	for name, want := range map[string]bool{
		id64("a"): true, id64("a")[:12]: true, id64("a")[:20]: true, sha("d"): true, "localhost/app:v1": true,
		id64("a")[:11]: false, id64("b")[:12]: false, "": false, "app:v1": false, "aaaaaaaaaaag": false,
	} {
		if got := image.is(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}
