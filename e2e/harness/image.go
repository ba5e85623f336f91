package harness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Paths and contents of the test image. Its layers, bottom first: busybox and the
// guest program with clean files; malicious files and clean neighbours; more
// clean files on top.
const (
	CleanFile    = "/data/clean.txt"      // lowest layer
	CleanText    = "a clean file\n"       // content of CleanFile
	BadFile      = "/data/bad.txt"        // EICAR, middle layer
	NextToBad    = "/data/neighbour.txt"  // clean, in BadFile's layer
	TopFile      = "/data/top.txt"        // clean, topmost layer
	ListedTool   = "/opt/listed/busybox"  // runs as busybox does; its hash is listed
	ListedScript = "/opt/listed/run.sh"   // a script; its hash is listed
	ViaListed    = "/opt/clean/script.sh" // a clean script whose interpreter is ListedTool
	ClamFile     = "/data/clam.txt"       // found by clamd's local database, not by hashes; middle layer
)

// ClamSignature returns the name and the body of the signature that finds
// ClamFile. The body does not stand in one piece either.
func ClamSignature() (name string, body []byte) {
	return "Assay.Test.Clam", []byte("assay-" + "clamd-" + "local-" + "database-" + "marker")
}

// An Image is the test image in the two forms that the runtimes take.
type Image struct {
	Layout string   // OCI image layout; the tag is "test"
	Layers []string // the same layers as directories, bottom first
	Hashes string   // file of ListedTool's and ListedScript's hashes (.hsb)
}

// applets are the busybox programs that tests run by name.
func applets() []string {
	return []string{
		"sh", "cat", "cp", "dd", "echo", "false", "head", "id", "ln", "ls", "mkdir", "mkfifo", "mount", "mv",
		"printf", "rm", "sleep", "test", "touch", "true", "truncate", "umount", "unshare", "wc", "chmod", "kill", "seq",
	}
}

// buildImage makes the image below dir, from nothing but this machine's busybox.
func buildImage(dir string) (*Image, error) {
	img := &Image{Layout: filepath.Join(dir, "oci"), Hashes: filepath.Join(dir, "listed.hsb")}
	for _, fill := range []func(*Image, string) error{baseLayer, badLayer, topLayer} {
		layer := filepath.Join(dir, fmt.Sprintf("layer%d", len(img.Layers)))
		if err := fill(img, layer); err != nil {
			return nil, fmt.Errorf("test image: %w", err)
		}
		img.Layers = append(img.Layers, layer)
	}
	if err := img.writeLayout(); err != nil {
		return nil, fmt.Errorf("test image: %w", err)
	}
	return img, nil
}

func baseLayer(_ *Image, dir string) error {
	busybox, err := readBusybox()
	if err != nil {
		return err
	}
	for _, d := range []string{"proc", "sys", "dev", "etc", "run", "tmp", "mnt", "root", "vol", "db", "ram"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := put(dir, "/bin/busybox", busybox, 0o755); err != nil {
		return err
	}
	for _, name := range applets() {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	if err := buildGuest(filepath.Join(dir, "bin", "guest")); err != nil {
		return err
	}
	if err := put(dir, "/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644); err != nil {
		return err
	}
	return put(dir, CleanFile, []byte(CleanText), 0o644)
}

func badLayer(img *Image, dir string) error {
	busybox, err := readBusybox()
	if err != nil {
		return err
	}
	listed := append(bytes.Clone(busybox), "a copy of busybox with a hash of its own"...)
	script := []byte("#!/bin/sh\necho listed script ran\n")
	_, clam := ClamSignature()
	files := []struct {
		path string
		data []byte
		mode os.FileMode
	}{
		{BadFile, EICAR(), 0o644},
		{NextToBad, []byte("clean too\n"), 0o644},
		{ListedTool, listed, 0o755},
		{ListedScript, script, 0o755},
		{ViaListed, []byte("#!" + ListedTool + " sh\necho via listed interpreter\n"), 0o755},
		{ClamFile, append([]byte("some text, then "), clam...), 0o644},
	}
	for _, f := range files {
		if err := put(dir, f.path, f.data, f.mode); err != nil {
			return err
		}
	}
	list := hashLine(listed, "Assay.Test.Tool") + hashLine(script, "Assay.Test.Script")
	return os.WriteFile(img.Hashes, []byte(list), 0o600)
}

func topLayer(_ *Image, dir string) error {
	for i := range 16 {
		if err := put(dir, fmt.Sprintf("/data/many/%02d", i), fmt.Appendf(nil, "file %d\n", i), 0o644); err != nil {
			return err
		}
	}
	return put(dir, TopFile, []byte("the topmost layer\n"), 0o644)
}

func put(dir, path string, data []byte, mode os.FileMode) error {
	full := filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	return os.WriteFile(full, data, mode)
}

// hashLine returns data's line in a ClamAV .hsb file: hash, size in bytes, name.
func hashLine(data []byte, name string) string {
	sum := sha256.Sum256(data)
	return fmt.Sprintf("%s:%d:%s\n", hex.EncodeToString(sum[:]), len(data), name)
}

func readBusybox() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, errors.New("no static busybox on this machine (package busybox-static)")
	}
	return os.ReadFile(path)
}

// buildGuest compiles the program that runs inside containers.
func buildGuest(out string) error {
	_, err := must(context.Background(), []string{"CGO_ENABLED=0"},
		"go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", out, "github.com/assay-project/assay/e2e/guest")
	return err
}

// writeLayout packs the layers into an OCI image layout with umoci.
func (img *Image) writeLayout() error {
	return writeLayout(context.Background(), img.Layout, img.Layers)
}

// writeLayout packs layers, bottom first, into the image "test" of an OCI image layout.
func writeLayout(ctx context.Context, layout string, layers []string) error {
	tagged := layout + ":test"
	steps := [][]string{{"init", "--layout", layout}, {"new", "--image", tagged}}
	for _, layer := range layers {
		steps = append(steps, []string{"insert", "--image", tagged, layer, "/"})
	}
	steps = append(steps, []string{
		"config", "--image", tagged, "--config.cmd", "/bin/sh", "--config.env", "PATH=/bin",
	})
	for _, args := range steps {
		if _, err := must(ctx, nil, "umoci", args...); err != nil {
			return err
		}
	}
	return nil
}
