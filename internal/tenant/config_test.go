package tenant_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/assay-project/assay/internal/tenant"
)

// parse returns the configuration that text says.
func parse(t *testing.T, text string) *tenant.Config {
	t.Helper()
	c, err := tenant.Parse("f", []byte(text))
	if err != nil {
		t.Fatalf("%s\nis refused:\n%v", text, err)
	}
	return c
}

func equal(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

// everyKey sets every key to something other than its default.
const everyKey = `
socket: /run/a.sock
state: /var/lib/a
scanners:
  - name: clamav
    clamd: {address: "unix:/run/clamd.sock", connections: 7, maxFileSize: 25MiB}
  - name: remote
    clamd: {address: "tcp:[::1]:3310"}
  - name: hashes
    hashlist: {files: [/etc/a/*.hsb, "/etc/b/[^x].hdb"]}
tenants:
  - name: payments
    match: {namespaces: ["pay-*", bank], namespaceLabels: {team: "p[^x]*", env: prod}, podLabels: {example.com/tier: pci}}
    mode: audit
    on: [exec]
    stages:
      - {scanners: [hashes], decide: all}
      - {scanners: [clamav, remote], decide: any}
      - {scanners: [clamav, remote, hashes], decide: {quorum: 2}}
      - {scanners: [clamav, remote, hashes], decide: "quorum: 3"}
      - {scanners: [clamav]}
    deadline: 1m
    onError: allow
    onTimeout: allow
    onUnscannable: allow
    onTooLarge: allow
    maxSize: 100MiB
    kernelMarks: all
    volumeMarks: superblock
    scanAhead: off
    onNewGeneration: wait
    grace: 1m30s
    onAgentGone: allow
    onUnguarded: allow
    exclude: {mounts: [/var/lib/postgresql/data]}
  - name: rest
    match: {}
cache: {memory: 64MiB, disk: 0}
keeper: {backend: systemd, socket: /run/k.sock}
records: {file: /var/log/a.jsonl, maxSize: 20MB, keep: 9, labels: [app, example.com/tier]}
exempt:
  - {namespaces: [assay-system]}
  - {namespaces: ["kube-*", infra], namespaceLabels: {scanned: "no"}}
trust: {podLabels: [example.com/tier, runner]}
namespaces:
  - {name: pay-eu, labels: {team: payments, env: prod}}
  - {name: infra, labels: {scanned: "no"}}
  - {name: plain, labels: {}}
containerd: {socket: /run/c.sock, namespace: moby}
nri: {mode: on, socket: /run/n.sock, index: "07", hook: /opt/assay-hook}
`

func TestParseEveryKey(t *testing.T) {
	t.Parallel()
	all := []string{"clamav", "remote", "hashes"}
	equal(t, parse(t, everyKey), &tenant.Config{
		Socket: "/run/a.sock", State: "/var/lib/a",
		Scanners: []tenant.Scanner{
			{Name: "clamav", Clamd: &tenant.Clamd{Address: "unix:/run/clamd.sock", Connections: 7, MaxFileSize: 25 << 20}},
			{Name: "remote", Clamd: &tenant.Clamd{Address: "tcp:[::1]:3310", Connections: 4, MaxFileSize: 100 << 20}},
			{Name: "hashes", Hashlist: &tenant.Hashlist{Files: []string{"/etc/a/*.hsb", "/etc/b/[^x].hdb"}}},
		},
		Tenants: []tenant.Tenant{
			{
				Name: "payments", Match: tenant.Match{
					Namespaces:      []string{"pay-*", "bank"},
					NamespaceLabels: map[string]string{"team": "p[^x]*", "env": "prod"},
					PodLabels:       map[string]string{"example.com/tier": "pci"},
				},
				Mode: tenant.Audit, OnExec: true,
				Stages: []tenant.Stage{
					{Scanners: []string{"hashes"}},
					{Scanners: []string{"clamav", "remote"}, Quorum: 1},
					{Scanners: all, Quorum: 2},
					{Scanners: all, Quorum: 3},
					{Scanners: []string{"clamav"}},
				},
				Deadline: time.Minute,
				OnError:  tenant.Allow, OnTimeout: tenant.Allow, OnUnscannable: tenant.Allow, OnTooLarge: tenant.Allow,
				MaxSize: 100 << 20, KernelMarks: tenant.MarkAll, VolumeMarks: tenant.VolumeSuperblock,
				ScanAhead: tenant.AheadOff, OnGeneration: tenant.GenerationWait,
				Grace: 90 * time.Second, OnAgentGone: tenant.Allow, OnUnguarded: tenant.Allow,
				ExcludeMounts: []string{"/var/lib/postgresql/data"},
			},
			{
				Name: "rest", Mode: tenant.Enforce, OnOpen: true, OnExec: true,
				Stages: []tenant.Stage{{Scanners: all}}, Deadline: 5 * time.Second,
				OnError: tenant.Deny, OnTimeout: tenant.Deny, OnUnscannable: tenant.Deny, OnTooLarge: tenant.Deny,
				KernelMarks: tenant.MarkLayers, VolumeMarks: tenant.VolumeMount,
				ScanAhead: tenant.AheadLayers, OnGeneration: tenant.GenerationRescan,
				Grace: 30 * time.Second, OnAgentGone: tenant.Deny, OnUnguarded: tenant.Deny,
				ExcludeMounts: []string{},
			},
		},
		Cache:   tenant.Cache{Memory: 64 << 20},
		Keeper:  tenant.Keeper{Backend: tenant.KeeperSystemd, Socket: "/run/k.sock"},
		Records: tenant.Records{File: "/var/log/a.jsonl", MaxSize: 20e6, Keep: 9},
		Exempt: []tenant.Match{
			{Namespaces: []string{"assay-system"}},
			{Namespaces: []string{"kube-*", "infra"}, NamespaceLabels: map[string]string{"scanned": "no"}},
		},
		Trust: tenant.Trust{PodLabels: []string{"example.com/tier", "runner"}},
		Namespaces: []tenant.Namespace{
			{Name: "pay-eu", Labels: map[string]string{"team": "payments", "env": "prod"}},
			{Name: "infra", Labels: map[string]string{"scanned": "no"}},
			{Name: "plain", Labels: map[string]string{}},
		},
		Containerd:   tenant.Containerd{Socket: "/run/c.sock", Namespace: "moby"},
		NRI:          tenant.NRI{Mode: tenant.NRIOn, Socket: "/run/n.sock", Index: "07", Hook: "/opt/assay-hook"},
		RecordLabels: []string{"app", "example.com/tier"},
	})
}

// TestDefault also shows that an empty mapping means the same as no file.
func TestDefault(t *testing.T) {
	t.Parallel()
	want := &tenant.Config{
		Socket: "/run/assay/agent.sock", State: "/var/lib/assay",
		Scanners: []tenant.Scanner{{Name: "builtin", Hashlist: &tenant.Hashlist{Files: []string{}}}},
		Tenants: []tenant.Tenant{{
			Name: "default", Mode: tenant.Enforce, OnOpen: true, OnExec: true,
			Stages: []tenant.Stage{{Scanners: []string{"builtin"}}}, Deadline: 5 * time.Second,
			OnError: tenant.Deny, OnTimeout: tenant.Deny, OnUnscannable: tenant.Deny, OnTooLarge: tenant.Deny,
			KernelMarks: tenant.MarkLayers, VolumeMarks: tenant.VolumeMount, ExcludeMounts: []string{},
			ScanAhead: tenant.AheadLayers, OnGeneration: tenant.GenerationRescan,
			Grace: 30 * time.Second, OnAgentGone: tenant.Deny, OnUnguarded: tenant.Deny,
		}},
		Cache:   tenant.Cache{Memory: 256 << 20, Disk: 256 << 20},
		Keeper:  tenant.Keeper{Backend: tenant.KeeperProcess, Socket: "/run/assay/keeper.sock"},
		Records: tenant.Records{MaxSize: 100 << 20, Keep: 5},
		Trust:   tenant.Trust{PodLabels: []string{}}, RecordLabels: []string{},
		Containerd: tenant.Containerd{Socket: "/run/containerd/containerd.sock", Namespace: "k8s.io"},
		NRI:        tenant.NRI{Mode: tenant.NRIAuto, Socket: "/var/run/nri/nri.sock", Index: "10"},
	}
	equal(t, tenant.Default(), want)
	equal(t, parse(t, "{}"), want)
}

// TestImplicitTenant: whoever matches no tenant of the file is still guarded.
func TestImplicitTenant(t *testing.T) {
	t.Parallel()
	const scanners = "scanners: [{name: x, hashlist: {}}, {name: y, hashlist: {}}]\n"
	c := parse(t, scanners+"tenants: [{name: a, match: {namespaces: [a]}, mode: audit}]")
	if len(c.Tenants) != 2 {
		t.Fatalf("%d tenants, want 2", len(c.Tenants))
	}
	added := c.Tenants[1]
	if added.Name != "default" || added.Mode != tenant.Enforce || !added.Match.Everything() {
		t.Errorf("added %+v", added)
	}
	equal(t, added.Stages, []tenant.Stage{{Scanners: []string{"x", "y"}}})
	for _, match := range []string{"{}", `{namespaces: ["*"]}`, `{namespaces: [a, "**"]}`} {
		if c := parse(t, "tenants: [{name: a, match: "+match+"}]"); len(c.Tenants) != 1 {
			t.Errorf("match: %s is not enough to match everything", match)
		}
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"0": 0, "5": 5, "5B": 5, `"5"`: 5, "1kB": 1000, "1KB": 1000, "2MB": 2e6, "3GB": 3e9, "4TB": 4e12,
		"1KiB": 1 << 10, "2MiB": 2 << 20, "3GiB": 3 << 30, "4TiB": 4 << 40, "9223372036854775807": 1<<63 - 1,
	} {
		if got := parse(t, "tenants: [{name: a, maxSize: "+text+"}]").Tenants[0].MaxSize; got != want {
			t.Errorf("maxSize: %s is %d bytes, want %d", text, got, want)
		}
	}
}

// TestEncodings are inputs that are hard to see in a text file.
func TestEncodings(t *testing.T) {
	t.Parallel()
	keys := &strings.Builder{}
	for i := range 65 {
		fmt.Fprintf(keys, "k%d: 1\n", i)
	}
	for name, c := range map[string]struct{ input, want string }{
		"byte order mark":  {"\ufeffsocket: a", `f:1:9: socket: "a" is a relative path (write an absolute path)`},
		"CRLF":             {"state: /a\r\nsocket: a\r\n", `f:2:9: socket: "a" is a relative path (write an absolute path)`},
		"letters before":   {"{state: /é, socket: a}", `f:1:21: socket: "a" is a relative path (write an absolute path)`},
		"not UTF-8":        {"state: /é\nsocket: é\xff", "f:2:10: not UTF-8 text (save the file as UTF-8)"},
		"too large":        {strings.Repeat("#\n", 1<<19) + "#", "f:1:1: the file is larger than 1048576 bytes (split the hosts or shorten the file)"},
		"a document's end": {"socket: /a\n...\nstate: /b", `f:2:1: "..." is a YAML feature that the configuration does not use (keep one document in the file)`},
		"too many tenants": {
			"tenants: [" + strings.Repeat("{},", 4097) + "]",
			"f:1:12299: tenants has 4097 items, more than 4096 (divide them among several agents)",
		},
		"too many scanners": {
			"scanners: [" + strings.Repeat("{},", 65) + "]",
			"f:1:204: scanners has 65 items, more than 64 (divide them among several agents)",
		},
		"too many namespaces": {
			"namespaces: [" + strings.Repeat("{},", 16385) + "]",
			"f:1:49166: namespaces has 16385 items, more than 16384 (divide them among several agents)",
		},
		"too many keys": {keys.String(), "f:65:4: more keys in one mapping than there are settings (see the configuration reference)"},
	} {
		_, err := tenant.Parse("f", []byte(c.input))
		if got := messages(t, err); got != c.want+"\n" {
			t.Errorf("%s: got\n%swant\n%s", name, got, c.want)
		}
	}
	equal(t, parse(t, strings.Repeat("#", 1<<20-3)+"\n{}").Socket, "/run/assay/agent.sock")
	equal(t, parse(t, "---\r\nsocket: /a\r\n...\r\n").Socket, "/a")
}

// TestOverlap: patterns that take only a part of each other are fine, and so are
// many tenants written as blocks.
func TestOverlap(t *testing.T) {
	t.Parallel()
	parse(t, `tenants: [{name: a, match: {namespaces: ["team-?"]}}, {name: b, match: {namespaces: ["team-*", "t*"]}}]`)
	text := "tenants:\n"
	for i := range 20 {
		text += fmt.Sprintf("  - name: t%d\n    mode: audit\n    match:\n      namespaces:\n        - n%d\n    deadline: 1s\n", i, i)
	}
	if got := len(parse(t, text).Tenants); got != 21 {
		t.Errorf("%d tenants, want 20 and the implicit one", got)
	}
}

// TestManyProblems: an error stays readable, however much is wrong.
func TestManyProblems(t *testing.T) {
	t.Parallel()
	_, err := tenant.Parse("f", []byte("tenants:\n"+strings.Repeat("- {a: 1}\n", 1000)))
	if got := strings.Count(messages(t, err), "\n"); got != 100 {
		t.Errorf("%d problems, want 100", got)
	}
}

func TestTenantFor(t *testing.T) {
	t.Parallel()
	c := parse(t, `
tenants:
  - {name: first, match: {namespaces: ["pay-*", "team?"]}}
  - {name: second, match: {namespaces: ["*-dev", "[ab]c"]}}
  - {name: last}
exempt:
  - {namespaces: [assay-system]}
  - {namespaces: ["infra-*", "x?"]}
`)
	for namespace, want := range map[string]string{
		"pay-eu": "first", "pay-dev": "first", "team1": "first", "team12": "last", "a-dev": "second",
		"ac": "second", "dc": "last", "": "last", "Pay-eu": "last", "pay-a/b": "last", "*": "last", "[ab]c": "last",
	} {
		if got := c.TenantFor(c.Subject(namespace, nil)).Name; got != want {
			t.Errorf("namespace %q belongs to %q, want %q", namespace, got, want)
		}
	}
	for namespace, want := range map[string]bool{
		"assay-system": true, "infra-net": true, "xy": true, "assay-system2": false, "": false, "x": false, "infra": false,
	} {
		if got := c.Exempts(c.Subject(namespace, nil)); got != want {
			t.Errorf("namespace %q exempt: %v, want %v", namespace, got, want)
		}
	}
	equal(t, c.TenantFor(tenant.Subject{Namespace: "pay-eu"}) == &c.Tenants[0], true)
}

// TestAsterisk: "*" selects what it looks like, even what path.Match leaves out.
func TestAsterisk(t *testing.T) {
	t.Parallel()
	c := parse(t, `tenants: [{name: all, match: {namespaces: ["*"]}}]`)
	for _, namespace := range []string{"", "a", "a/b"} {
		if got := c.TenantFor(tenant.Subject{Namespace: namespace}); got == nil || got.Name != "all" {
			t.Errorf("namespace %q belongs to %v", namespace, got)
		}
	}
	if got := (&tenant.Config{}).TenantFor(tenant.Subject{Namespace: "a"}); got != nil {
		t.Errorf("no tenants, but one was found: %v", got)
	}
	if m := (tenant.Match{Namespaces: []string{""}}); m.Everything() || m.Selects(tenant.Subject{Namespace: "a"}) {
		t.Error("the empty pattern selects everything")
	}
	malformed := tenant.Match{Namespaces: []string{"[a"}}
	if malformed.Selects(tenant.Subject{Namespace: "[a"}) || malformed.Selects(tenant.Subject{Namespace: "a"}) {
		t.Error("a malformed pattern selects something")
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "assay.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(everyKey)
	c, err := tenant.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, c, parse(t, everyKey))

	write("a: 1")
	_, err = tenant.Load(file)
	if got := messages(t, err); !strings.HasPrefix(got, file+":1:1: unknown key") {
		t.Errorf("got %s", got)
	}
	write(strings.Repeat("#", 3<<20))
	_, err = tenant.Load(file)
	if got := messages(t, err); !strings.Contains(got, "larger than") {
		t.Errorf("got %s", got)
	}

	if _, err = tenant.Load(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
	if _, err = tenant.Load(dir); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("a directory gives %v", err)
	}
}

func TestRestartNeeded(t *testing.T) {
	t.Parallel()
	old := parse(t, everyKey)
	for _, c := range []struct {
		from, to string
		want     []string
	}{
		{"/run/a.sock", "/run/b.sock", []string{"socket"}},
		{"/var/lib/a", "/var/lib/b", []string{"state"}},
		{"memory: 64MiB", "memory: 65MiB", []string{"cache"}},
		{"disk: 0", "disk: 8MiB", []string{"cache"}},
		{"backend: systemd", "backend: off", []string{"keeper"}},
		{"keep: 9", "keep: 8", []string{"records"}},
		{"maxSize: 20MB", "maxSize: 21MB", []string{"records"}},
		{"a.jsonl", "b.jsonl", []string{"records"}},
		{"deadline: 1m", "deadline: 1s", nil},
		{"connections: 7", "connections: 8", nil},
		{"infra", "infra2", nil},
		{"/run/c.sock", "/run/d.sock", []string{"containerd"}},
		{"namespace: moby", "namespace: k8s.io", []string{"containerd"}},
		{"mode: on", "mode: off", []string{"nri"}},
		{"/run/n.sock", "/run/m.sock", []string{"nri"}},
		{`index: "07"`, `index: "08"`, []string{"nri"}},
		{"/opt/assay-hook", "/usr/libexec/assay-hook", []string{"nri"}},
		{", runner]", "]", nil},
		{"name: plain, labels: {}", "name: plain, labels: {env: dev}", nil},
		{"labels: [app,", "labels: [team,", nil},
		{"onUnguarded: allow", "onUnguarded: deny", nil},
		{"maxSize: 20MB", "maxSize: 20000kB", nil},
	} {
		text := strings.Replace(everyKey, c.from, c.to, 1)
		if got := old.RestartNeeded(parse(t, text)); !slices.Equal(got, c.want) {
			t.Errorf("%s -> %s needs a restart for %v, want %v", c.from, c.to, got, c.want)
		}
	}
	all := []string{"socket", "state", "cache", "keeper", "records", "containerd", "nri"}
	if got := old.RestartNeeded(tenant.Default()); !slices.Equal(got, all) {
		t.Errorf("everything changed, restart needed for %v", got)
	}
}
