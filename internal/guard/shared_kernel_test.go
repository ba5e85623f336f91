package guard

import (
	"testing"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
)

// TestKernelSharedGroupVolume: two containers share a group and a volume, and a reload
// puts them into two tenants. A mark on a file of the volume would be for both: what
// one tenant takes for clean must not let the other's container in.
func TestKernelSharedGroupVolume(t *testing.T) {
	weak, strong := newWeak(), newContains()
	r := twoTenants(t, tenant.MarkAll, weak, strong)
	noMoreGroups(t, r)
	volume := t.TempDir()
	with := "mount --bind " + volume + " vol; printf malware >vol/bad"
	lax := kerneltest.NewContainer(t, map[string]string{"vol/empty": ""}, with)
	strict := kerneltest.NewContainer(t, map[string]string{"vol/empty": ""}, with)
	r.announced(t, lax)
	r.announced(t, strict, inNamespace("other"))
	cfg, all := tenantsConfig(tenant.MarkAll, weak, strong)
	cfg.Tenants[0].Match = tenant.Match{Namespaces: []string{"other"}}
	r.Apply(cfg, all)()
	r.remembered(t, lax, "vol/bad", needle, tenant.MarkOff, weak)
	for range 5 { // a mark may be on its way
		begin(t, lax.Command(t, "cat", lax.Path("vol/bad"))).wantContent(t, needle)
		denied(t, strict, "vol/bad")
	}
	eventually(t, "the wish for a mark is decided on", func() bool {
		st := r.marks.stats()
		return st.Placed > 0 || len(st.Skipped) > 0
	})
	denied(t, strict, "vol/bad")
}
