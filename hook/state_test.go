package hook

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestReadState(t *testing.T) {
	// As runc 1.1 and crun 1.8 write it, shortened.
	const runc = `{"ociVersion":"1.0.2-dev","id":"c1","status":"creating","pid":14775,"bundle":"/b","annotations":{"a":"b"}}`
	const crun = `{"ociVersion":"1.0","id":"c1","pid":15192,"root":"rootfs","bundle":"/b","status":"created"}`
	for _, text := range []string{runc, crun} {
		s, err := readState(strings.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if s.ID != "c1" || s.Pid < 14775 || s.Bundle != "/b" {
			t.Errorf("%s: got %+v", text, s)
		}
	}
	bad := []struct{ name, text, err string }{
		{"empty", "", "is empty"},
		{"not JSON", "state", "not an OCI container state"},
		{"half", runc[:40], "not an OCI container state"},
		{"two", runc + crun, "not an OCI container state"},
		{"an array", "[]", "not an OCI container state"},
		{"pid is text", `{"id":"c1","pid":"7"}`, "not an OCI container state"},
		{"pid overflows", `{"id":"c1","pid":99999999999999999999}`, "not an OCI container state"},
		{"no pid", `{"id":"c1","status":"creating","bundle":"/b"}`, "pid is 0"},
		{"pid in the container", `{"id":"c1","pid":1,"status":"creating","bundle":"/b"}`, "pid is 1"},
		{"negative pid", `{"id":"c1","pid":-7,"status":"creating","bundle":"/b"}`, "pid is -7"},
		{"running", `{"id":"c1","pid":7,"status":"running","bundle":"/b"}`, `status is "running"`},
		{"no status", `{"id":"c1","pid":7,"bundle":"/b"}`, `status is ""`},
		{"relative bundle", `{"id":"c1","pid":7,"status":"created","bundle":"b"}`, "not an absolute path"},
		{"too long", `{"id":"` + strings.Repeat("x", maxState) + `"}`, "more than 1048576 bytes"},
	}
	for _, tt := range bad {
		t.Run(tt.name, func(t *testing.T) {
			s, err := readState(strings.NewReader(tt.text))
			if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want ErrState with %q", err, tt.err)
			}
			if s == nil {
				t.Fatal("no state with the error")
			}
		})
	}
}

func TestReadStateReadError(t *testing.T) {
	_, err := readState(io.MultiReader(strings.NewReader("{"), failingReader{}))
	if !errors.Is(err, ErrState) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

func FuzzReadState(f *testing.F) {
	f.Add(`{"ociVersion":"1.0","id":"c1","pid":15192,"root":"rootfs","bundle":"/b","status":"created"}`)
	f.Add(`{"id":"","pid":2,"bundle":"/","status":"creating","annotations":{"a":"\u0000"}}`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := readState(strings.NewReader(text))
		if err != nil && !errors.Is(err, ErrState) {
			t.Fatalf("error %v", err)
		}
		if err == nil && (s.Pid <= 1 || !filepath.IsAbs(s.Bundle)) {
			t.Fatalf("accepted %+v", s)
		}
	})
}

// bundle makes a bundle whose root.path is path; "" leaves root out.
func bundle(t *testing.T, path string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	spec := specs.Spec{Version: "1.0.2"}
	if path != "" {
		spec.Root = &specs.Root{Path: path}
	}
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRootfs(t *testing.T) {
	elsewhere := bundle(t, "rootfs") + "/rootfs"
	tests := []struct{ name, path, want string }{ // want "" is BUNDLE/rootfs
		{"relative", "rootfs", ""},
		{"not clean", "./rootfs/../rootfs//", ""},
		{"absolute", elsewhere, elsewhere},
		{"through a link", "link", elsewhere},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := bundle(t, tt.path)
			if err := os.Symlink(elsewhere, filepath.Join(dir, "link")); err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				tt.want = dir + "/rootfs"
			}
			got, err := rootfs(dir)
			if err != nil || got != tt.want {
				t.Fatalf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestRootfsOfLinkedBundle(t *testing.T) {
	dir := bundle(t, "rootfs")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if got, err := rootfs(link); err != nil || got != dir+"/rootfs" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestRootfsErrors(t *testing.T) {
	empty := t.TempDir()
	garbage := bundle(t, "rootfs")
	if err := os.WriteFile(garbage+"/config.json", []byte(`{"root":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	huge := bundle(t, "rootfs")
	if err := os.Truncate(huge+"/config.json", maxConfig+1); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, dir, err string }{
		{"no bundle", empty + "/none", "no such file"},
		{"no config.json", empty, "no such file"},
		{"garbage", garbage, "cannot unmarshal"},
		{"too long", huge, "more than 16777216 bytes"},
		{"no root", bundle(t, ""), "names no root filesystem"},
		{"no such rootfs", bundle(t, "gone"), "gone: no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := rootfs(tt.dir)
			if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want ErrState with %q", err, tt.err)
			}
		})
	}
}
