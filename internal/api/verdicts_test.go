package api

import (
	"errors"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/announce"
	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/layer"
)

// refusedWith fails the test unless err is a refusal with these words.
func refusedWith(t *testing.T, err error, want string) {
	t.Helper()
	r, ok := errors.AsType[*announce.Refusal](err)
	if !ok || !strings.Contains(r.Error(), want) || r.Remedy == "" {
		t.Errorf("error %v, want a refusal with a remedy and %q", err, want)
	}
}

// httpStatus is what a server sends with err.
func httpStatus(err error) int {
	status, _ := encodeError(err)
	return status
}

func TestVerdicts(t *testing.T) {
	b := newBackend(t)
	got, err := NewClient(serve(t, b)).Verdicts(t.Context())
	if err != nil || got.Scopes == nil || got.Scanners == nil || got.Flushed == nil || got.Refused == nil || got.Store.Lost == nil {
		t.Errorf("of an empty cache: %+v, %v; want nothing to be null", got, err)
	}
	b = newBackend(t)
	b.verdicts = Verdicts{
		Cache:    CacheStatus{Files: 7, Hits: 3, Misses: 1},
		Scopes:   []VerdictScope{{Kind: ScopeLayer, Label: "sha256:aa", Hits: 1, Misses: 1}, {Kind: ScopeContainer}},
		Scanners: []VerdictScanner{{Name: "clamav", Misses: 5}},
		Flushed:  map[string]uint64{"layer-gone": 2},
	}
	got, err = NewClient(serve(t, b)).Verdicts(t.Context())
	if err != nil || got.Cache.HitRate != 0.75 || got.Scopes[0].HitRate != 0.5 || got.Scopes[1].HitRate != 0 ||
		got.Scanners[0].HitRate != 0 || got.Scanners[0].Generations == nil || got.Flushed["layer-gone"] != 2 {
		t.Errorf("Verdicts() = %+v, %v", got, err)
	}
}

func TestStatusIsCompleted(t *testing.T) {
	b := newBackend(t)
	b.status = Status{Cache: CacheStatus{Hits: 1, Misses: 3}}
	got, err := NewClient(serve(t, b)).Status(t.Context())
	if err != nil || got.Ahead.State != AheadOff || got.Cache.HitRate != 0.25 || got.Marks.Skipped == nil || got.Store.Lost == nil {
		t.Errorf("Status() = %+v, %v", got, err)
	}
}

func TestExplain(t *testing.T) {
	b := newBackend(t)
	b.explain = func(container, path string) (Explanation, error) {
		if container != "web" || path != "/bin/a b\xff" {
			return Explanation{}, refusef(http.StatusNotFound, "look", "no %q in %q", path, container)
		}
		return Explanation{
			File: ExplainedFile{Type: "regular"}, Layer: ExplainedLayer{Reason: "copied-up"}, Scanners: []ExplainedScanner{{Name: "x"}},
		}, nil
	}
	client := NewClient(serve(t, b))
	got, err := client.Explain(t.Context(), "web", "/bin/a b\xff")
	if err != nil || got.Layer.Text != layerText("copied-up") || got.Mark.State != MarkNone || got.Mark.Lease != LeaseNone ||
		got.Notes == nil || got.Scanners[0].Verdicts == nil || got.Open.Scanners == nil || got.Exec.Scanners == nil || got.Policy.On == nil {
		t.Errorf("Explain() = %+v, %v", got, err)
	}
	for _, wrong := range []struct{ container, path, want string }{
		{"", "/x", "container is missing"},
		{"web", "", "no absolute path"},
		{"web", "x", "no absolute path"},
		{"web", "/x\x00", "no absolute path"},
		{"db", "/x", `no "/x" in "db"`},
	} {
		_, err := client.Explain(t.Context(), wrong.container, wrong.path)
		refusedWith(t, err, wrong.want)
	}
}

func TestEveryLayerReasonHasASentence(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range layer.Reasons() {
		text := layerText(r.String())
		if text == "" || seen[text] {
			t.Errorf("%s is explained as %q", r, text)
		}
		seen[text] = true
	}
	if got := layerText("nosuch"); got != "" {
		t.Errorf("no reason is explained as %q", got)
	}
}

func TestFindContainer(t *testing.T) {
	all := []ContainerStatus{{ID: "abc1", Name: "web"}, {ID: "abd2", Name: "web"}, {ID: "ab", Name: "db"}, {ID: "xyz", Name: "abc"}}
	for word, want := range map[string]string{"abd": "abd2", "ab": "ab", "db": "ab", "xyz": "xyz", "abc1": "abc1"} {
		if got, err := FindContainer(all, word); err != nil || got.ID != want {
			t.Errorf("FindContainer(%q) = %q, %v, want %q", word, got.ID, err, want)
		}
	}
	for word, want := range map[string]string{"web": "abc1, abd2", "abc": "any of 2", "nosuch": "no guarded container", "": "no guarded container"} {
		_, err := FindContainer(all, word)
		refusedWith(t, err, want)
	}
	if _, err := FindContainer(all, "nosuch"); httpStatus(err) != http.StatusNotFound {
		t.Errorf("status of an unknown container is %d", httpStatus(err))
	}
}

func TestAhead(t *testing.T) {
	b := newBackend(t)
	b.ahead = func(paused bool) (AheadStatus, error) {
		if paused {
			return AheadStatus{State: AheadPaused, LayersQueued: 2}, nil
		}
		return AheadStatus{}, nil
	}
	path := serve(t, b)
	if got, err := NewClient(path).Ahead(t.Context(), true); err != nil || got.State != AheadPaused || got.LayersQueued != 2 {
		t.Errorf("Ahead(true) = %+v, %v", got, err)
	}
	if got, err := NewClient(path).Ahead(t.Context(), false); err != nil || got.State != AheadOff {
		t.Errorf("Ahead(false) = %+v, %v", got, err)
	}
	for body, want := range map[string]string{
		"": "EOF", "{}": "makes no sense", `{"paused":1}`: "paused", `{"paused":true,"x":1}`: "unknown field", `{"paused":true}{}`: "follows",
	} {
		refusePost(t, path, PathAhead, body, want)
	}
}

func TestRelease(t *testing.T) {
	b := newBackend(t)
	b.release = func(container string) (Released, error) {
		c, err := FindContainer([]ContainerStatus{{ID: "a b/c?", Name: "web", Tenant: "t", PID: 7}}, container)
		return Released{ID: c.ID, Name: c.Name, Tenant: c.Tenant, PID: c.PID}, err
	}
	path := serve(t, b)
	want := Released{ID: "a b/c?", Name: "web", Tenant: "t", PID: 7}
	for _, name := range []string{"web", "a b/c?"} {
		if got, err := NewClient(path).Release(t.Context(), name); err != nil || got != want {
			t.Errorf("Release(%q) = %+v, %v", name, got, err)
		}
	}
	_, err := NewClient(path).Release(t.Context(), "nosuch")
	refusedWith(t, err, "no guarded container")
	_, err = NewClient(path).Release(t.Context(), "")
	refusedWith(t, err, "names no container")
}

// jsonKeys adds the keys of a type's JSON to all.
func jsonKeys(of reflect.Type, all map[string]bool) {
	switch of.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		jsonKeys(of.Elem(), all)
	case reflect.Struct:
		for field := range of.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name != "" {
				all[name] = true
				jsonKeys(field.Type, all)
			}
		}
	default:
	}
}

func TestEveryKeyIsDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	keys := make(map[string]bool)
	for _, v := range []any{Status{}, Verdicts{}, Explanation{}, ScanRequest{}, ScanLine{}, AheadStatus{}, aheadRequest{}, audit.Record{}, CheckResult{}} {
		jsonKeys(reflect.TypeOf(v), keys)
	}
	if len(keys) < 100 {
		t.Fatalf("only %d keys found", len(keys))
	}
	for key := range keys {
		if doc := string(raw); !strings.Contains(doc, `"`+key+`"`) && !strings.Contains(doc, "`"+key+"`") && !strings.Contains(doc, "."+key+"`") {
			t.Errorf("docs/api.md does not mention %q", key)
		}
	}
}
