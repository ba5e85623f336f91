package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// file writes a file and returns its path.
func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "assay.yaml")
	write(t, path, content)
	return path
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCommandLine runs what ends by itself: exit codes and what is said.
func TestCommandLine(t *testing.T) {
	valid, invalid := file(t, "tenants:\n- name: pay\n  match: {namespaces: [pay]}\n"), file(t, "tenants:\n- name: pay\n  mod: audit\n")
	for _, tc := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"valid", []string{"--config", valid, "--check"}, 0, "valid: 2 tenants, 1 scanners"},
		{"invalid, checked", []string{"--config", invalid, "--check"}, 2, invalid + ":3"},
		{"invalid, run", []string{"--config", invalid}, 2, invalid + ":3"},
		{"no such file", []string{"--config", valid + ".not", "--check"}, 2, "check the path"},
		{"a directory", []string{"--config", filepath.Dir(valid), "--check"}, 2, "cannot be read"},
		{"unknown flag", []string{"--chek"}, 2, "--help"},
		{"flag without a value", []string{"--config"}, 2, "--help"},
		{"argument", []string{"--check", "--config", valid, "more"}, 2, `unexpected argument "more"`},
		{"log level", []string{"--log-level", "loud", "--check"}, 2, "none of debug, info, warn, error"},
		{"log format", []string{"--log-format", "xml", "--check"}, 2, "none of text, json"},
		{"no readers", []string{"--readers", "0", "--check"}, 2, "between 1 and 1024"},
		{"too many readers", []string{"--readers", "1025", "--check"}, 2, "between 1 and 1024"},
		{"readers in words", []string{"--readers", "two", "--check"}, 2, "--help"},
		{"help", []string{"--help"}, 0, "--config"},
		{"version", []string{"--version"}, 0, version},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var said strings.Builder
			if code := run(append([]string{"assayd"}, tc.args...), &said); code != tc.code || !strings.Contains(said.String(), tc.says) {
				t.Errorf("exit code %d, want %d; it should say %q:\n%s", code, tc.code, tc.says, said.String())
			}
		})
	}
}

func TestConfigFile(t *testing.T) {
	if got := configFile("/some/file"); got != "/some/file" {
		t.Errorf("the named file became %q", got)
	}
	if cfg, err := load(""); err != nil || len(cfg.Tenants) != 1 || nameOf("") == "" {
		t.Errorf("the built-in configuration: %+v, %v", cfg, err)
	}
}

func TestNewLogger(t *testing.T) {
	for format, want := range map[string]string{"text": "level=WARN", "json": `"level":"WARN"`} {
		var said strings.Builder
		log, err := newLogger("warn", format, &said)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("quiet")
		log.Warn("loud")
		if got := said.String(); strings.Contains(got, "quiet") || !strings.Contains(got, want) {
			t.Errorf("%s: %q", format, got)
		}
	}
}
