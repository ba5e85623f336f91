package doctor

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestFindRuntimes(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	o := fakeOptions(t)
	n := &node{runtimes: []program{{"good", "is fine"}, {"bad", ""}, {"absent", ""}}}
	want(t, find(t, n.findRuntimes(t.Context(), o), AreaRuntimes, "commands"), Warn, "no runtime", "install podman")

	for name, script := range map[string]string{"good": "echo good version 7; echo more", "bad": "exit 3"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	checks := n.findRuntimes(t.Context(), o)
	if len(checks) != 2 {
		t.Fatalf("found %+v, want good and bad", checks)
	}
	want(t, checks[0], OK, "good version 7 ("+dir+"/good); is fine", "")
	want(t, checks[1], Unknown, "exit status 3", "by hand")
}

func TestEndpoints(t *testing.T) {
	dir := t.TempDir()
	socket, file := filepath.Join(dir, "daemon.sock"), filepath.Join(dir, "file")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	write(t, file, "")
	n := &node{runtimes: []program{{name: "true"}}, sockets: []endpoint{
		{name: "daemon", path: socket, note: "is not guarded", remedy: "read the limits"},
		{name: "file", path: file},
		{name: "none", path: dir + "/none"},
		{name: "below a file", path: file + "/x", note: "odd"},
	}}
	checks := n.findRuntimes(t.Context(), fakeOptions(t))
	want(t, find(t, checks, AreaRuntimes, "daemon"), Warn, socket+" is not guarded", "read the limits")
	want(t, find(t, checks, AreaRuntimes, "below a file"), Unknown, "not a directory", "root")
	if len(checks) != 3 {
		t.Errorf("found %+v, want true, daemon and the one that could not be looked at", checks)
	}
}
