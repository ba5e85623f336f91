package layer

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
)

func TestFindImage(t *testing.T) {
	images := []storedImage{
		{ID: id64("1"), Names: []string{"docker.io/library/busybox:latest"}, Top: id64("a")},
		{ID: id64("2"), Names: []string{"localhost/app:v1", "localhost/app:v2"}, Top: id64("b")},
		{ID: id64("3"), Top: id64("c")},
		{ID: "33" + id64("4")[2:], Names: []string{"example.org/busybox:1"}, Top: id64("d")},
	}
	for name, want := range map[string]string{
		"busybox": id64("a"), "library/busybox:latest": id64("a"), "docker.io/library/busybox": id64("a"),
		"app:v2": id64("b"), "localhost/app:v1": id64("b"), id64("3"): id64("c"), "sha256:" + id64("3"): id64("c"),
		"app": "", "usybox": "", "": "", "33": "", "busybox:2": "",
	} {
		got, err := findImage(images, name)
		if got != want || (want == "") != (err != nil) {
			t.Errorf("%q: %q, %v, want %q", name, got, err, want)
		}
	}
	images[2].Names = []string{"example.org/busybox:latest"}
	if _, err := findImage(images, "busybox"); err == nil || errors.Is(err, ErrNotStored) {
		t.Errorf("ambiguous: %v", err)
	}
}

func TestWalkChain(t *testing.T) {
	chain := []chainLayer{{ID: id64("a")}, {ID: id64("b"), Parent: id64("a")}, {ID: id64("c"), Parent: id64("b")}}
	got, err := walkChain(chain, id64("c"))
	if err != nil || !slices.Equal(got, []string{id64("c"), id64("b"), id64("a")}) {
		t.Errorf("%v, %v", got, err)
	}
	chain[0].Parent = id64("c")
	for name, top := range map[string]string{"a circle": id64("c"), "unknown": id64("d"), "no id": "../x"} {
		if got, err := walkChain(append(chain, chainLayer{ID: "../x"}), top); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzImages: whatever the files say, only layer ids come out, and it ends.
func FuzzImages(f *testing.F) {
	f.Add([]byte(`[{"id":"`+id64("1")+`","names":["a/b:c"],"layer":"`+id64("a")+`"}]`), []byte(`[{"id":"`+id64("a")+`","parent":""}]`), "b:c")
	f.Add([]byte(`[{"names":[""],"layer":"x"}]`), []byte(`[{"id":"x","parent":"x"}]`), "")
	f.Fuzz(func(t *testing.T, images, layers []byte, name string) {
		var i []storedImage
		var l []chainLayer
		if json.Unmarshal(images, &i) != nil || json.Unmarshal(layers, &l) != nil {
			return
		}
		top, err := findImage(i, name)
		if err != nil {
			return
		}
		ids, err := walkChain(l, top)
		for _, id := range ids {
			if err == nil && !isLayerID(id) {
				t.Errorf("%q is no layer's id", id)
			}
		}
	})
}
