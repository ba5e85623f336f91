package tenant_test

import (
	"testing"

	"github.com/assay-project/assay/internal/tenant"
)

// checkOwners: everybody has a tenant, the first that selects it, and nobody without
// a namespace is exempt or chooses by labels.
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
			t.Errorf("containers of namespace %q belong to nobody: %+v", namespace, c)
		}
		if namespace == "" && (c.Exempts(s) || !got.Match.Everything()) {
			t.Errorf("a container without a namespace is exempt, or belongs to %+v", got)
		}
	}
}
