package tenant_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/assay-project/assay/internal/tenant"
)

// checkOwners: everybody has a tenant, and nobody without a namespace is exempt or
// chooses by labels.
func checkOwners(t *testing.T, c *tenant.Config) {
	t.Helper()
	labels := map[string]string{}
	for _, key := range c.Trust.PodLabels {
		labels[key] = ""
	}
	for _, namespace := range []string{"", "a", "a/b"} {
		s := c.Subject(namespace, labels)
		got := c.TenantFor(s)
		if got == nil {
			t.Fatalf("containers of namespace %q belong to nobody: %+v", namespace, c)
		}
		if namespace == "" && (c.Exempts(s) || !got.Match.Everything()) {
			t.Errorf("a container without a namespace is exempt, or belongs to %+v", got)
		}
	}
}

// platform has selectors of every sort.
const platform = `
trust: {podLabels: [tier, size]}
namespaces:
  - {name: pay-eu, labels: {team: payments, env: prod}}
  - {name: pay-dev, labels: {team: payments, env: dev}}
  - {name: web, labels: {team: ""}}
  - {name: gpu, labels: {team: infra, scanned: "no"}}
tenants:
  - {name: pci, match: {namespaces: ["pay-*"], namespaceLabels: {team: payments, env: prod}, podLabels: {tier: "pci*"}}}
  - {name: payments, match: {namespaceLabels: {team: "pay*"}}}
  - {name: labelled, match: {namespaceLabels: {team: "*"}, podLabels: {size: ""}}}
  - {name: big, match: {namespaces: ["*"], podLabels: {size: "*"}}}
exempt:
  - {namespaces: [system]}
  - {namespaces: ["g*", web], namespaceLabels: {scanned: "no"}}
`

// TestSelectors: all parts of a match must hold, a pattern of every value asks for the
// label to be there, and whoever has no namespace is selected by no label.
func TestSelectors(t *testing.T) {
	t.Parallel()
	c := parse(t, platform)
	for _, tc := range []struct {
		namespace string
		pod       map[string]string
		want      string
	}{
		{"pay-eu", map[string]string{"tier": "pci"}, "pci"},
		{"pay-eu", map[string]string{"tier": "pci-dss", "app": "x"}, "pci"},
		{"pay-eu", map[string]string{"tier": "web"}, "payments"},
		{"pay-eu", nil, "payments"},
		{"pay-dev", map[string]string{"tier": "pci"}, "payments"}, // another environment
		{"pay-us", map[string]string{"tier": "pci"}, "default"},   // a namespace without labels
		{"web", map[string]string{"tier": "pci"}, "default"},
		{"web", map[string]string{"size": ""}, "labelled"},
		{"web", map[string]string{"size": "1"}, "big"},
		{"web", map[string]string{"size": "a/b"}, "big"},
		{"other", map[string]string{"size": ""}, "big"},
		{"a/b", map[string]string{"size": "1"}, "big"},
		{"other", map[string]string{}, "default"},
		{"", map[string]string{"size": "1", "tier": "pci"}, "default"},
	} {
		if got := c.TenantFor(c.Subject(tc.namespace, tc.pod)).Name; got != tc.want {
			t.Errorf("%q with labels %v belongs to %q, want %q", tc.namespace, tc.pod, got, tc.want)
		}
	}
	for namespace, want := range map[string]bool{"system": true, "gpu": true, "gpu2": false, "web": false, "": false} {
		if got := c.Exempts(c.Subject(namespace, map[string]string{"scanned": "no", "size": "1"})); got != want {
			t.Errorf("namespace %q exempt: %v, want %v", namespace, got, want)
		}
	}
}

func TestEverything(t *testing.T) {
	t.Parallel()
	team := map[string]string{"team": "*"}
	for _, tc := range []struct {
		match tenant.Match
		want  bool
	}{
		{tenant.Match{}, true},
		{tenant.Match{Namespaces: []string{"a", "*"}}, true},
		{tenant.Match{NamespaceLabels: map[string]string{}, PodLabels: map[string]string{}}, true},
		{tenant.Match{NamespaceLabels: team}, false},
		{tenant.Match{PodLabels: team}, false},
		{tenant.Match{Namespaces: []string{"*"}, PodLabels: team}, false},
		{tenant.Match{Namespaces: []string{"a"}}, false},
	} {
		if got := tc.match.Everything(); got != tc.want {
			t.Errorf("%+v matches everything: %v, want %v", tc.match, got, tc.want)
		}
		if got := tc.match.Selects(tenant.Subject{NamespaceLabels: map[string]string{"team": "a"}, PodLabels: map[string]string{"team": "a"}}); got != tc.want {
			t.Errorf("%+v selects containers without a namespace: %v", tc.match, got)
		}
	}
}

// TestUntrustedLabels: a pod has no say by labels that the platform does not vouch for,
// even in a configuration that no file can spell.
func TestUntrustedLabels(t *testing.T) {
	t.Parallel()
	c := parse(t, platform)
	pod := map[string]string{"team": "payments", "env": "prod", "scanned": "no", "Tier": "pci", "tier/": "pci", "app": "x"}
	before := maps.Clone(pod)
	equal(t, c.Subject("web", pod), tenant.Subject{Namespace: "web", NamespaceLabels: map[string]string{"team": ""}})
	equal(t, c.TenantFor(c.Subject("web", pod)).Name, "default")
	equal(t, c.Exempts(c.Subject("gpu2", pod)), false)
	equal(t, pod, before)

	forged := &tenant.Config{
		Tenants: []tenant.Tenant{{Name: "lax", Match: tenant.Match{PodLabels: map[string]string{"tier": "lax"}}}, {Name: "rest"}},
		Exempt:  []tenant.Match{{PodLabels: map[string]string{"tier": "lax"}}},
	}
	s := forged.Subject("a", map[string]string{"tier": "lax"})
	if got := forged.TenantFor(s).Name; got != "rest" || forged.Exempts(s) {
		t.Errorf("a label that is not trusted brought the container to %q, or exempted it", got)
	}
}

func TestAsksPodLabels(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		platform:                     true,
		"{}":                         false,
		"trust: {podLabels: [tier]}": false,
		"namespaces: [{name: a, labels: {b: c}}]\ntenants: [{name: a, match: {namespaceLabels: {b: c}}}]": false,
	} {
		if got := parse(t, text).AsksPodLabels(); got != want {
			t.Errorf("%s\nasks for pod labels: %v", text, got)
		}
	}
}

// pick returns one of the words.
func pick(r *rand.Rand, words ...string) string { return words[r.IntN(len(words))] }

// randomMatch returns a match of few words, so that many of them overlap.
func randomMatch(r *rand.Rand, pod bool) tenant.Match {
	var m tenant.Match
	for range r.IntN(3) {
		if p := pick(r, "a", "ab", "a*", "b?", "*b", "[ab]"); !slices.Contains(m.Namespaces, p) {
			m.Namespaces = append(m.Namespaces, p)
		}
	}
	some := func(keys ...string) map[string]string {
		out := map[string]string{}
		for _, key := range keys {
			if r.IntN(3) == 0 {
				out[key] = pick(r, "a", "b", "*", "a*", "?", "")
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	}
	m.NamespaceLabels = some("team", "env")
	if pod {
		m.PodLabels = some("tier")
	}
	return m
}

// subjects returns every container that the words of randomMatch can tell apart.
func subjects() []tenant.Subject {
	var all []tenant.Subject
	for _, namespace := range []string{"", "a", "ab", "b", "bb", "zz"} {
		for i := range 64 {
			s := tenant.Subject{Namespace: namespace, NamespaceLabels: map[string]string{}, PodLabels: map[string]string{}}
			for j, key := range []string{"team", "env", "tier"} {
				into := s.NamespaceLabels
				if key == "tier" {
					into = s.PodLabels
				}
				if value := []string{"absent", "", "a", "b"}[i>>(2*j)&3]; value != "absent" {
					into[key] = value
				}
			}
			all = append(all, s)
		}
	}
	return all
}

// selects is the rule once more, by counting what does not hold.
func selects(m tenant.Match, s tenant.Subject) bool {
	lacking := 0
	for asked, have := range map[*map[string]string]map[string]string{&m.NamespaceLabels: s.NamespaceLabels, &m.PodLabels: s.PodLabels} {
		for key, pattern := range *asked {
			value, there := have[key]
			if ok, _ := path.Match(pattern, value); !ok || !there {
				lacking++
			}
		}
	}
	named := len(m.Namespaces) == 0
	for _, pattern := range m.Namespaces {
		ok, _ := path.Match(pattern, s.Namespace)
		named = named || ok
	}
	conditions := len(m.Namespaces) + len(m.NamespaceLabels) + len(m.PodLabels)
	return conditions == 0 || s.Namespace != "" && named && lacking == 0
}

// TestFirstSelects: whoever the container is, its tenant is the first whose match
// selects it, and it is exempt if any exemption does.
func TestFirstSelects(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test that can be repeated
	all := subjects()
	for range 300 {
		c := &tenant.Config{Exempt: []tenant.Match{randomMatch(r, false)}}
		for range 5 {
			c.Tenants = append(c.Tenants, tenant.Tenant{Match: randomMatch(r, true)})
		}
		for _, s := range all {
			want := slices.IndexFunc(c.Tenants, func(t tenant.Tenant) bool { return selects(t.Match, s) })
			got := c.TenantFor(s)
			if (want < 0) != (got == nil) || want >= 0 && got != &c.Tenants[want] {
				t.Fatalf("%+v belongs to %+v, want number %d of %+v", s, got, want, c.Tenants)
			}
			if got := c.Exempts(s); got != selects(c.Exempt[0], s) {
				t.Fatalf("%+v exempt of %+v: %v", s, c.Exempt, got)
			}
		}
	}
}

// TestNeverUsed: what the file is blamed for is true. A tenant or a pattern that is
// called unused selects nothing that is left.
func TestNeverUsed(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // a test that can be repeated
	all := subjects()
	blamed := 0
	for range 1500 {
		c := &tenant.Config{Exempt: []tenant.Match{randomMatch(r, false)}}
		for range 4 {
			c.Tenants = append(c.Tenants, tenant.Tenant{Match: randomMatch(r, true)})
		}
		blamed += checkBlame(t, c, all)
	}
	if blamed < 500 {
		t.Errorf("only %d tenants were never used: the test shows little", blamed)
	}
}

// checkBlame writes c out with a tenant a line, and holds each complaint against all
// subjects. It returns how many there were.
func checkBlame(t *testing.T, c *tenant.Config, all []tenant.Subject) (blamed int) {
	t.Helper()
	const first = 4 // the line of the first tenant
	text := "trust: {podLabels: [tier]}\nnamespaces: [{name: x, labels: {team: a, env: a}}]\ntenants:\n"
	for i := range c.Tenants {
		text += fmt.Sprintf("  - {name: t%d, match: %s}\n", i, selector(t, c.Tenants[i].Match))
	}
	if len(c.Exempt[0].Namespaces)+len(c.Exempt[0].NamespaceLabels) == 0 {
		c.Exempt = nil
	} else {
		text += "exempt: [" + selector(t, c.Exempt[0]) + "]\n"
	}
	_, err := tenant.Parse("f", []byte(text))
	var wrong *tenant.Error
	if err == nil || !errors.As(err, &wrong) {
		return 0
	}
	for _, p := range wrong.Problems {
		if !strings.Contains(p.Message, "never used") {
			t.Fatalf("%s\nhas another problem: %s", text, p)
		}
		i := p.Line - first
		m := c.Tenants[i].Match
		if quoted, ok := strings.CutPrefix(p.Message, "namespaces: "); ok {
			m.Namespaces = []string{strings.Split(quoted, `"`)[1]}
		}
		for _, s := range all {
			if got := c.TenantFor(s); m.Selects(s) && !c.Exempts(s) && got == &c.Tenants[i] {
				t.Fatalf("%s\nhas the problem %s\nbut %+v belongs to it", text, p, s)
			}
		}
		blamed++
	}
	return blamed
}

// selector spells a match.
func selector(t *testing.T, m tenant.Match) string {
	t.Helper()
	data, err := json.Marshal(struct {
		Namespaces      []string          `json:"namespaces,omitempty"`
		NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"`
		PodLabels       map[string]string `json:"podLabels,omitempty"`
	}(m))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
