package tenant

import (
	"path"
	"slices"
	"strings"
)

// A Subject is all of a container that its tenant may depend on. Take it from
// [Config.Subject]: that one holds nothing that the configuration does not trust.
type Subject struct {
	Namespace       string            // "" is none was announced
	NamespaceLabels map[string]string // of that namespace, as the configuration says
	PodLabels       map[string]string // the trusted ones of the pod
}

// Subject returns what may decide about a container announced with the given
// namespace and pod labels: the labels that the configuration gives to that
// namespace are added, pod labels that it does not trust are left out. The labels
// are not changed.
func (c *Config) Subject(namespace string, podLabels map[string]string) Subject {
	s := Subject{Namespace: namespace}
	if i := slices.IndexFunc(c.Namespaces, func(n Namespace) bool { return n.Name == namespace }); i >= 0 {
		s.NamespaceLabels = c.Namespaces[i].Labels
	}
	for _, key := range c.Trust.PodLabels {
		if value, ok := podLabels[key]; ok {
			if s.PodLabels == nil {
				s.PodLabels = make(map[string]string)
			}
			s.PodLabels[key] = value
		}
	}
	return s
}

// AsksPodLabels reports whether some tenant's Match depends on pod labels, so that
// who announces containers should tell them.
func (c *Config) AsksPodLabels() bool {
	return slices.ContainsFunc(c.Tenants, func(t Tenant) bool { return len(t.Match.PodLabels) > 0 })
}

// Everything reports whether m selects every container, those announced without
// a namespace included: it asks for no label, and has no pattern of namespaces or
// one of only asterisks.
func (m Match) Everything() bool { return !m.asksLabels() && m.everyNamespace() }

// Selects reports whether m selects a container. The empty namespace (none was
// announced) is selected only by a Match that selects everything, whatever labels
// came with it.
func (m Match) Selects(s Subject) bool {
	if m.Everything() {
		return true
	}
	return s.Namespace != "" && m.selectsNamespace(s.Namespace) &&
		allHold(m.NamespaceLabels, s.NamespaceLabels) && allHold(m.PodLabels, s.PodLabels)
}

// TenantFor returns the tenant of a container: the first in file order whose Match
// selects it. It is never nil for a Config from Load, Parse or Default, since their
// last resort is a tenant that matches everything. That of the zero Subject is the
// default tenant.
func (c *Config) TenantFor(s Subject) *Tenant {
	for i := range c.Tenants {
		if c.Tenants[i].Match.Selects(s) {
			return &c.Tenants[i]
		}
	}
	return nil
}

// Exempts reports whether a container is not guarded at all. Ask it before
// TenantFor. It is never true for the empty namespace of a Config from Load, Parse
// or Default.
func (c *Config) Exempts(s Subject) bool {
	return slices.ContainsFunc(c.Exempt, func(m Match) bool { return m.Selects(s) })
}

// asksLabels reports whether some container is not selected for want of a label.
func (m Match) asksLabels() bool { return len(m.NamespaceLabels)+len(m.PodLabels) > 0 }

// everyNamespace reports whether m leaves no namespace out.
func (m Match) everyNamespace() bool {
	return len(m.Namespaces) == 0 || slices.ContainsFunc(m.Namespaces, matchesEverything)
}

// selectsNamespace reports whether a name that is not empty passes m's patterns.
func (m Match) selectsNamespace(name string) bool {
	return m.everyNamespace() || slices.ContainsFunc(m.Namespaces, func(pattern string) bool {
		return matches(pattern, name)
	})
}

// allHold reports whether every key that is asked for is there with a value that
// its pattern selects.
func allHold(asked, labels map[string]string) bool {
	for key, pattern := range asked {
		value, ok := labels[key]
		if !ok || !matchesEverything(pattern) && !matches(pattern, value) {
			return false
		}
	}
	return true
}

// matchesEverything reports whether pattern is asterisks only. Unlike in
// path.Match such a pattern also selects names with a slash, so that "*" means
// what it looks like.
func matchesEverything(pattern string) bool {
	return pattern != "" && strings.Trim(pattern, "*") == ""
}

// matches reports whether one shell pattern selects text. A malformed pattern,
// which Parse refuses, selects nothing.
func matches(pattern, text string) bool {
	ok, err := path.Match(pattern, text)
	return err == nil && ok
}
