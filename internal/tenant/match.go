package tenant

import (
	"path"
	"slices"
	"strings"
)

// Everything reports whether m selects every container, those announced without
// a namespace included: it is empty, or one of its patterns is only asterisks.
func (m Match) Everything() bool {
	return len(m.Namespaces) == 0 || slices.ContainsFunc(m.Namespaces, matchesEverything)
}

// Selects reports whether m selects a container of the given namespace. The
// empty namespace (none was announced) is selected only by a Match that selects
// everything.
func (m Match) Selects(namespace string) bool {
	return m.Everything() || slices.ContainsFunc(m.Namespaces, func(pattern string) bool {
		return matches(pattern, namespace)
	})
}

// TenantFor returns the tenant of a container announced with the given
// namespace: the first in file order whose Match selects it. It is never nil
// for a Config from Load, Parse or Default, since their last resort is a tenant
// that matches everything. TenantFor("") is the default tenant.
func (c *Config) TenantFor(namespace string) *Tenant {
	for i := range c.Tenants {
		if c.Tenants[i].Match.Selects(namespace) {
			return &c.Tenants[i]
		}
	}
	return nil
}

// Exempts reports whether containers of the given namespace are not guarded at
// all. Ask it before TenantFor. It is never true for the empty namespace of a
// Config from Load, Parse or Default.
func (c *Config) Exempts(namespace string) bool {
	return slices.ContainsFunc(c.Exempt, func(m Match) bool { return m.Selects(namespace) })
}

// matchesEverything reports whether pattern is asterisks only. Unlike in
// path.Match such a pattern also selects names with a slash, so that "*" means
// what it looks like.
func matchesEverything(pattern string) bool {
	return pattern != "" && strings.Trim(pattern, "*") == ""
}

// matches reports whether one shell pattern selects namespace. A malformed
// pattern, which Parse refuses, selects nothing.
func matches(pattern, namespace string) bool {
	ok, err := path.Match(pattern, namespace)
	return err == nil && ok
}
