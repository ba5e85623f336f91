package main

import (
	"slices"
	"strings"
	"testing"
)

func TestArrange(t *testing.T) {
	for in, want := range map[string]string{
		"assay":                                    "assay",
		"assay status":                             "assay status --",
		"assay -o json status":                     "assay status -o json --",
		"assay status -o json":                     "assay status -o json --",
		"assay --output=json status":               "assay status --output=json --",
		"assay --socket /s -o json check f":        "assay check --socket /s -o json -- f",
		"assay check f -o json g":                  "assay check -o json -- f g",
		"assay check - --tenant t":                 "assay check --tenant t -- -",
		"assay check -- -f -o json":                "assay check -- -f -o json",
		"assay events -f x":                        "assay events -f -- x",
		"assay events --nosuch x":                  "assay events --nosuch -- x",
		"assay events -n":                          "assay events -n",
		"assay check f --socket":                   "assay check --socket",
		"assay -o":                                 "assay -o",
		"assay -o json":                            "assay -o json",
		"assay -o json policy -o table check file": "assay policy check -o json -o table -- file",
		"assay policy --help":                      "assay policy --help",
		"assay -o json policy nosuch -o json":      "assay -o json policy nosuch -o json",
		"assay nosuch -o json":                     "assay nosuch -o json",
		"assay --nosuch status":                    "assay --nosuch status --",
		"assay --help":                             "assay --help",
		"assay help":                               "assay --help",
		"assay help check":                         "assay check --help",
		"assay help policy check":                  "assay policy check --help",
		"assay check f -h":                         "assay check -h",
		"assay check --tenant -h f":                "assay check --tenant -h -- f",
		"assay help nosuch":                        "assay nosuch --help",
		"assay --version":                          "assay version --",
		"assay --version -o json":                  "assay version -o json --",
		"assay check help":                         "assay check -- help",
		"assay check --version":                    "assay check --version --",
	} {
		got := arrange(quietProgram().app(), strings.Fields(in))
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q\nis arranged as %q\nwant           %q", in, strings.Join(got, " "), want)
		}
	}
}

func FuzzArrange(f *testing.F) {
	f.Add("assay check f -o json -- -x")
	f.Add("assay -o")
	f.Add("assay help")
	f.Add("assay policy --socket=/x check -")
	f.Fuzz(func(t *testing.T, line string) {
		in := strings.Fields(line)
		if len(in) < 2 {
			return
		}
		before := slices.Clone(in)
		out := arrange(quietProgram().app(), in)
		if !slices.Equal(in, before) {
			t.Fatal("changed its argument")
		}
		// No word is lost or made up, but for "--", "help" and "--version".
		trim := func(words []string) []string {
			words = slices.DeleteFunc(slices.Clone(words[1:]), func(w string) bool {
				return slices.Contains([]string{"--", "help", "--help", "version", "--version"}, w)
			})
			slices.Sort(words)
			return words
		}
		shortened := strings.HasPrefix(in[len(in)-1], "-") || slices.ContainsFunc(in, isHelp) || in[1] == "help"
		if (!shortened || len(out) >= len(in)) && !slices.Equal(trim(in), trim(out)) {
			t.Fatalf("%q became %q", in, out)
		}
	})
}
