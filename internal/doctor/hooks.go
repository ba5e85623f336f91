package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hookCommand is the base name of the hook's program, and hookMarker begins the
// environment variable that internal/install gives an entry.
const (
	hookCommand = "assay-hook"
	hookMarker  = "ASSAY_INSTALLED="
)

// A hookEntry is one file in a hooks directory that calls Assay's hook
// (oci-hooks(5), version 1.0.0).
type hookEntry struct {
	file string
	Hook struct {
		Path string   `json:"path"`
		Args []string `json:"args"`
		Env  []string `json:"env"`
	} `json:"hook"`
	Stages []string `json:"stages"`

	required bool // the runtime does not go on without the program
}

// A hooksReport is what the hooks directories say.
type hooksReport struct {
	entries []hookEntry
	checks  []Check
}

// readHooks looks for Assay's hook in dirs, and checks what it finds.
func readHooks(dirs []string) *hooksReport {
	r := &hooksReport{}
	for _, dir := range dirs {
		r.readDir(dir)
	}
	for i := range r.entries {
		r.checks = append(r.checks, r.entries[i].check())
	}
	if len(r.checks) == 0 {
		r.checks = append(r.checks, Check{
			Area: AreaHooks, Name: "podman", Status: Warn,
			Detail: "no hook in " + strings.Join(dirs, " or ") + ": podman announces no containers to the agent",
			Remedy: "assay install podman, or --hooks-dir DIR here if podman is configured to look elsewhere",
		})
	}
	return r
}

// readDir adds the entries of one directory. Files that are not Assay's are none
// of its business, readable or not.
func (r *hooksReport) readDir(dir string) {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.checks = append(r.checks, Check{Area: AreaHooks, Name: dir, Status: Unknown, Detail: err.Error(), Remedy: runAsRoot})
	}
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".json" {
			continue
		}
		path := filepath.Join(dir, f.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			r.checks = append(r.checks, Check{Area: AreaHooks, Name: path, Status: Unknown, Detail: err.Error(), Remedy: runAsRoot})
			continue
		}
		entry := hookEntry{file: path}
		if json.Unmarshal(text, &entry) == nil && entry.ours() {
			r.entries = append(r.entries, entry)
		}
	}
}

// ours reports whether the entry calls Assay's hook.
func (e *hookEntry) ours() bool {
	return filepath.Base(e.program()) == hookCommand ||
		slices.ContainsFunc(e.Hook.Env, func(v string) bool { return strings.HasPrefix(v, hookMarker) })
}

// program returns the path of the hook itself, which may be started by env(1).
func (e *hookEntry) program() string {
	if e.throughEnv() {
		return e.Hook.Args[1]
	}
	return e.Hook.Path
}

// throughEnv reports whether the entry starts the hook with env(1).
func (e *hookEntry) throughEnv() bool {
	return filepath.Base(e.Hook.Path) == "env" && len(e.Hook.Args) > 1
}

// check says whether the entry works and protects.
func (e *hookEntry) check() Check {
	check := Check{Area: AreaHooks, Name: e.file, Status: OK, Detail: "calls " + e.program()}
	runs := slices.ContainsFunc(e.Stages, func(s string) bool { return s == "createRuntime" || s == "prestart" })
	problem := e.programProblem()
	switch {
	case problem != "":
		check.Status, check.Detail = Fail, problem
		check.Remedy = "install assay-hook as root with mode 0755, then run " + e.installCommand()
	case !runs:
		check.Status, check.Remedy = Fail, e.installCommand()+" writes the entry anew"
		check.Detail = fmt.Sprintf("runs at stages %q, where a container cannot be guarded in time", e.Stages)
	case e.allowsWithoutAgent():
		check.Status = Warn
		check.Detail += " with --on-agent-missing allow: while the agent is away, containers start unguarded"
		check.Remedy = e.installCommand() + " --on-agent-missing fail, if protection matters more than starting"
	}
	return check
}

// installCommand returns what has written the entry.
func (e *hookEntry) installCommand() string {
	for _, v := range e.Hook.Env {
		if target, ours := strings.CutPrefix(v, hookMarker); ours {
			return "assay install " + target
		}
	}
	return "assay install podman"
}

// allowsWithoutAgent reports whether the hook lets containers start when there
// is no agent.
func (e *hookEntry) allowsWithoutAgent() bool {
	for i, arg := range e.Hook.Args {
		name, value, joined := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if name != "on-agent-missing" {
			continue
		}
		if !joined && i+1 < len(e.Hook.Args) {
			value = e.Hook.Args[i+1]
		}
		return value == "allow"
	}
	return false
}

// programProblem says what is wrong with the program that the runtimes run as
// root for every container, or returns "".
func (e *hookEntry) programProblem() string {
	path := e.program()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		if e.required || e.throughEnv() {
			return fmt.Sprintf("%s cannot be run, so no container can start: %v", path, err)
		}
		return fmt.Sprintf("%s is not there; podman skips such a hook without a word, and containers start unguarded: %v", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0:
		return path + " is not a program, so no container can start"
	case st.Uid != 0 || st.Mode&0o022 != 0:
		return path + " can be changed by others than root, although runtimes run it as root"
	}
	return ""
}
