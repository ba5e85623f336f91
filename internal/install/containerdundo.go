package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// UninstallContainerd removes what Containerd wrote; only Containerd, Config, Dir and
// DryRun matter. It counts from containerd's next start on: until then containerd has
// the base specifications in its memory, and the hook has to stay where it is. Files
// of somebody else are left alone, with ErrForeign, before anything is removed.
func UninstallContainerd(ctx context.Context, opts ContainerdOptions) (ContainerdResult, error) {
	opts = opts.withDefaults()
	if !filepath.IsAbs(opts.Config) || !filepath.IsAbs(opts.Dir) {
		return ContainerdResult{}, fmt.Errorf("configuration %q and directory %q have to be absolute paths", opts.Config, opts.Dir)
	}
	files, err := opts.installed(ctx)
	if err != nil {
		return ContainerdResult{}, err
	}
	r := ContainerdResult{}
	if r.Files, err = compare(files); err != nil {
		return ContainerdResult{}, err
	}
	main, err := os.ReadFile(opts.Config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ContainerdResult{}, fmt.Errorf("containerd's configuration: %w", err)
	}
	line := importLine(opts.dropIn())
	if bytes.Contains(main, []byte("\n"+line+"\n")) {
		r.Import = line
	}
	for _, f := range files {
		if filepath.Ext(f.Path) == specSuffix && bytes.Contains(main, []byte(f.Path)) {
			return ContainerdResult{}, fmt.Errorf("%s names %s itself, without which containerd would not start (take it out of there first)", opts.Config, f.Path)
		}
	}
	if opts.DryRun {
		return r, nil
	}
	if r.Import != "" {
		if err := editConfig(opts.Config, func(text string) string { return strings.Replace(text, "\n"+line+"\n", "\n", 1) }); err != nil {
			return r, err
		}
	}
	return r, applyFiles(r.Files)
}

// installed lists what Containerd may have written, in the order in which it is to go:
// what names a file before the file.
func (o *ContainerdOptions) installed(ctx context.Context) ([]File, error) {
	files := []File{{Path: o.dropIn(), own: ownDropIn}}
	specs, err := ownSpecs(o.Dir)
	if err != nil {
		return nil, err
	}
	for _, path := range specs {
		files = append(files, File{Path: path, own: ownSpec})
	}
	// Without a containerd there is nobody who says where its plugins are.
	if now, err := dump(ctx, o.Containerd, o.Config); err == nil && filepath.IsAbs(now.Plugins.NRI.PluginPath) {
		path := filepath.Join(now.Plugins.NRI.PluginPath, LauncherFile)
		if _, err := readOwn(path, ownLauncher); !errors.Is(err, ErrForeign) { // may be installed in another way
			files = append(files, File{Path: path, own: ownLauncher})
		}
	}
	return files, nil
}

// ownSpecs returns the base specifications in dir that Containerd wrote.
func ownSpecs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for an earlier installation: %w", err)
	}
	var paths []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !strings.HasPrefix(e.Name(), specPrefix) || filepath.Ext(path) != specSuffix {
			continue
		}
		if text, err := readOwn(path, ownSpec); err == nil && text != nil {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// importLine is the line by which containerd reads the drop-in, and nothing else. It
// is a pattern, so that containerd starts if the file is missing.
func importLine(dropIn string) string {
	return fmt.Sprintf("imports = ['%s*.toml']", strings.TrimSuffix(dropIn, ".toml"))
}

// versionLine is the line of a configuration below which another key can stand.
var versionLine = regexp.MustCompile(`(?m)^version\s*=.*\n`)

// addImport adds the line to containerd's configuration.
func addImport(config, line string) error {
	return editConfig(config, func(text string) string {
		at := versionLine.FindStringIndex(text)
		if at == nil {
			return text
		}
		return text[:at[1]] + line + "\n" + text[at[1]:]
	})
}

// editConfig changes containerd's configuration, whole or not at all. It refuses to
// change anything but the imports, and a file that is a link or somebody else's.
func editConfig(config string, edit func(string) string) error {
	if err := checkPath(config, checkWritable); err != nil {
		return err
	}
	info, err := os.Lstat(config)
	if err != nil {
		return fmt.Errorf("containerd's configuration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is a link or no file (edit what it leads to by hand)", config)
	}
	old, err := os.ReadFile(config)
	if err != nil {
		return fmt.Errorf("containerd's configuration: %w", err)
	}
	text := []byte(edit(string(old)))
	if err := onlyImports(old, text); err != nil {
		return fmt.Errorf("%s cannot be edited safely (do it by hand): %w", config, err)
	}
	return replaceFile(config, text, info.Mode().Perm())
}

// onlyImports makes sure that two configurations differ, and only in their imports,
// which one of them does not have.
func onlyImports(a, b []byte) error {
	var before, after map[string]any
	if err := errors.Join(toml.Unmarshal(a, &before), toml.Unmarshal(b, &after)); err != nil {
		return fmt.Errorf("it has imports already, or more than one version: %w", err)
	}
	_, had := before["imports"]
	_, has := after["imports"]
	delete(before, "imports")
	delete(after, "imports")
	if had == has || !reflect.DeepEqual(before, after) {
		return errors.New("it has imports already, or no line that begins with version")
	}
	return nil
}

// lookPath returns the absolute path of a program.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%w (name it with its path)", err)
	}
	return filepath.Abs(path)
}
