package guard

import (
	"os"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
)

// programs are ways to change a program. Each is a shell script for the container,
// with the program's path and that of a listed one.
func programs() map[string]string {
	return map[string]string{
		"append":                 `printf ` + needle + ` >>"$1"`,
		"copy over":              `cat "$2" >"$1"`,
		"copy over, times kept":  `touch -r "$1" stamp; cat "$2" >"$1"; touch -r stamp "$1"`,
		"rename over":            `cp "$2" "$1.new"; mv "$1.new" "$1"`,
		"removed and made again": `rm "$1"; cp "$2" "$1"`,
		"hard link":              `cp "$2" "$1.new"; ln -f "$1.new" "$1"`,
		"symbolic link":          `cp "$2" "$1.new"; ln -sf "$1.new" "$1"`,
		"mode, then append":      `chmod 711 "$1"; printf ` + needle + ` >>"$1"`,
	}
}

// TestKernelChangedProgram: a program and a script that were run are not run once they
// have been changed, be the verdict remembered, or the kernel's mark on them.
func TestKernelChangedProgram(t *testing.T) {
	elf, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{"program": string(elf), "script": "#!/bin/sh\nexit 0\n"}
	for _, k := range states() {
		if k.place != inLayer && k.place != born {
			continue
		}
		t.Run(k.String(), func(t *testing.T) {
			s := programStage(t, k, kinds)
			for kind := range kinds {
				for name, script := range programs() {
					t.Run(kind+": "+name, func(t *testing.T) { s.program(t, s.c.Path(kind+"/"+name), kind, script) })
				}
			}
		})
	}
}

// programStage is a stage with a copy of each kind of program for each way to change it.
func programStage(t *testing.T, k knowledge, kinds map[string]string) *stage {
	t.Helper()
	s := &stage{knowledge: k, fake: newContains()}
	with := withMemory(t)
	s.rig = newRig(t, s.fake, config(func(p *tenant.Tenant) { p.KernelMarks, p.ScanAhead = k.marks, tenant.AheadOff }), with)
	files, script := map[string]string{}, []string{}
	for kind, content := range kinds {
		files[kind+".listed"] = content + needle
		files[kind+".source"] = content
		files[kind+"/empty"] = ""
		for name := range programs() {
			if k.place == inLayer {
				files[kind+"/"+name] = content
			} else {
				script = append(script, "cp "+kind+`.source "`+kind+"/"+name+`"`)
			}
		}
	}
	s.c = kerneltest.NewContainer(t, files, strings.Join(script, "\n"))
	s.announced(t, s.c)
	return s
}

// program changes a program after it was run.
func (s *stage) program(t *testing.T, path, kind, script string) {
	t.Helper()
	s.learn(t, path)
	// The listed one comes from outside: in the container nobody can read it.
	listed := s.c.Lower + "/" + kind + ".listed"
	if out, err := s.c.Command(t, "sh", "-e", "-c", `cd "$0"; `+script, s.c.Merged, path, listed).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.wantDenied(t, path)
	s.wantDenied(t, path)
}
