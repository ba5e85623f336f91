package tenant_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/tenant"
)

// again encodes the effective configuration and parses the result.
func again(t *testing.T, c *tenant.Config) *tenant.Config {
	t.Helper()
	data, err := json.Marshal(c.Effective())
	if err != nil {
		t.Fatal(err)
	}
	out, err := tenant.Parse("effective.json", data)
	if err != nil {
		t.Fatalf("effective configuration\n%s\nis refused:\n%v", data, err)
	}
	return out
}

// TestEffective: the dump is a configuration file that means the same.
func TestEffective(t *testing.T) {
	t.Parallel()
	for _, c := range []*tenant.Config{
		tenant.Default(), parse(t, everyKey), parse(t, "records: {labels: [app]}"), parse(t, "records: {file: /a}"),
	} {
		equal(t, again(t, c), c)
	}
	data, err := json.Marshal(tenant.Default().Effective())
	if err != nil {
		t.Fatal(err)
	}
	equal(t, string(data), `{"socket":"/run/assay/agent.sock","state":"/var/lib/assay",`+
		`"scanners":[{"name":"builtin","hashlist":{"files":[]}}],`+
		`"tenants":[{"name":"default","match":{},"mode":"enforce","on":["open","exec"],`+
		`"stages":[{"scanners":["builtin"],"decide":"all"}],"deadline":"5s",`+
		`"onError":"deny","onTimeout":"deny","onUnscannable":"deny","onTooLarge":"deny",`+
		`"maxSize":0,"kernelMarks":"layers","volumeMarks":"mount","scanAhead":"layers","onNewGeneration":"rescan","grace":"30s","onAgentGone":"deny","onUnguarded":"deny","exclude":{"mounts":[]}}],"cache":{"memory":268435456,"disk":268435456},"keeper":{"backend":"process","socket":"/run/assay/keeper.sock"},"exempt":[],`+
		`"trust":{"podLabels":[]},"namespaces":[],"containerd":{"socket":"/run/containerd/containerd.sock","namespace":"k8s.io"},`+
		`"nri":{"mode":"auto","socket":"/var/run/nri/nri.sock","index":"10"}}`)
}

// TestHash: equal for what means the same, different for everything else. Each
// scalar of a file that sets every key is changed once.
func TestHash(t *testing.T) {
	t.Parallel()
	if got := tenant.Default().Hash(); !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(got) {
		t.Errorf("hash is %q", got)
	}
	equal(t, parse(t, "tenants: [{name: default, deadline: 5000ms}]\nsocket: /run/assay/agent.sock").Hash(), tenant.Default().Hash())
	seen := map[string]string{parse(t, everyKey).Hash(): "nothing"}
	for i, change := range []struct{ from, to string }{
		{"/run/a.sock", "/run/b.sock"},
		{"/var/lib/a", "/var/lib/b"},
		{"name: remote", "name: far"},
		{"/run/clamd.sock", "/run/c.sock"},
		{"connections: 7", "connections: 8"},
		{"/etc/a/", "/etc/c/"},
		{"name: payments", "name: paying"},
		{"bank", "banks"},
		{"mode: audit", "mode: enforce"},
		{"on: [exec]", "on: [open]"},
		{"on: [exec]", "on: [exec, open]"},
		{"decide: any", "decide: all"},
		{"quorum: 2", "quorum: 3"},
		{"deadline: 1m", "deadline: 1s"},
		{"onError: allow", "onError: deny"},
		{"onTimeout: allow", "onTimeout: deny"},
		{"onUnscannable: allow", "onUnscannable: deny"},
		{"onTooLarge: allow", "onTooLarge: deny"},
		{"100MiB", "100MB"},
		{"kernelMarks: all", "kernelMarks: off"},
		{"grace: 1m30s", "grace: 1m"},
		{"onAgentGone: allow", "onAgentGone: deny"},
		{"backend: systemd", "backend: off"},
		{"/run/k.sock", "/run/l.sock"},
		{"superblock", "mount"},
		{"postgresql", "mysql"},
		{"match: {}\n", "match: {namespaces: [b]}\n"},
		{"log/a", "log/b"},
		{"20MB", "21MB"},
		{"keep: 9", "keep: 8"},
		{"infra", "infra2"},
		{"kube-*", "kube"},
		{"onUnguarded: allow", "onUnguarded: deny"},
		{"p[^x]*", "p*"},
		{"env: prod}, podLabels", "env: p*}, podLabels"},
		{"podLabels: {example.com/tier: pci}", "podLabels: {example.com/tier: pci, runner: big}"},
		{"tier: pci", "tier: pc?"},
		{", runner]", "]"},
		{"name: plain", "name: other"},
		{"labels: {team: payments", "labels: {team: paying"},
		{"/run/c.sock", "/run/d.sock"},
		{"namespace: moby", "namespace: k8s.io"},
		{"mode: on", "mode: auto"},
		{"/run/n.sock", "/run/m.sock"},
		{`index: "07"`, `index: "08"`},
		{"/opt/assay-hook", "/opt/hook"},
		{"labels: [app,", "labels: [team,"},
	} {
		text := strings.ReplaceAll(everyKey, change.from, change.to)
		if change.from == "name: remote" {
			text = strings.ReplaceAll(text, "remote", "far")
		}
		hash := parse(t, text).Hash()
		if other, same := seen[hash]; same {
			t.Errorf("changing %v hashes as changing %s", change, other)
		}
		seen[hash] = fmt.Sprintf("%d: %v", i, change)
	}
}
