package layer

import (
	"os"
	"path/filepath"
	"testing"
)

// database is docker's storage with a database that add fills.
type database struct{ root string }

// add adds a layer on the chain parent and returns its chain id.
func (d database) add(t *testing.T, cacheID, diff, parent string) (chain string) {
	t.Helper()
	chain = chainOn(parent, diff)
	dir := filepath.Join(d.root, "image/overlay2/layerdb/sha256", chain[len("sha256:"):])
	mkdir(t, filepath.Join(d.root, "image/overlay2/layerdb/sha256"))
	tmp := filepath.Join(d.root, "image/overlay2/layerdb/tmp")
	must(t, os.RemoveAll(tmp))
	write(t, tmp+"/cache-id", cacheID)
	write(t, tmp+"/diff", diff)
	write(t, tmp+"/size", "7")
	if parent != "" {
		write(t, tmp+"/parent", parent)
	}
	must(t, os.Rename(tmp, dir))
	return chain
}

// TestKernelDocker: cache ids lead to diffs; a container's -init directory is no
// image layer; the database is read again when it changes. (It needs root.)
func TestKernelDocker(t *testing.T) {
	db := database{t.TempDir()}
	low := db.add(t, "cache-low", sha("1"), "")
	mid := db.add(t, "cache-mid", sha("2"), low)
	d := NewDocker(hostTree(t))
	dir := func(id string) string { return db.root + "/overlay2/" + id + "/diff" }
	dirs := []string{dir("container-init"), dir("cache-top"), dir("cache-mid"), dir("cache-low"), db.root + "/overlay2/cache-low", "/somewhere"}
	wantDigests(t, d, dirs, "", "", sha("2"), sha("1"), "", "")
	top := db.add(t, "cache-top", sha("3"), mid)
	wantDigests(t, d, dirs, "", sha("3"), sha("2"), sha("1"), "", "")
	must(t, os.RemoveAll(db.root+"/image/overlay2/layerdb/sha256/"+top[len("sha256:"):]))
	wantDigests(t, d, dirs, "", "", sha("2"), sha("1"), "", "")
}

// TestKernelDockerRefuses: a database that is not as docker leaves it names nothing.
func TestKernelDockerRefuses(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, db database, chainDir string){
		"another diff":          func(t *testing.T, _ database, dir string) { t.Helper(); write(t, dir+"/diff", sha("9")) },
		"another parent":        func(t *testing.T, _ database, dir string) { t.Helper(); write(t, dir+"/parent", sha("9")) },
		"no parent":             func(t *testing.T, _ database, dir string) { t.Helper(); must(t, os.Remove(dir+"/parent")) },
		"no digest":             func(t *testing.T, _ database, dir string) { t.Helper(); write(t, dir+"/diff", "sha256:") },
		"a cache id with slash": func(t *testing.T, _ database, dir string) { t.Helper(); write(t, dir+"/cache-id", "../x") },
		"no cache id":           func(t *testing.T, _ database, dir string) { t.Helper(); write(t, dir+"/cache-id", "") },
		"someone else's":        func(t *testing.T, _ database, dir string) { t.Helper(); must(t, os.Chown(dir+"/diff", 1000, 0)) },
		"too long": func(t *testing.T, _ database, dir string) {
			t.Helper()
			must(t, os.Truncate(dir+"/diff", maxLayerFile+1))
		},
		"a cache id twice":      func(t *testing.T, db database, _ string) { t.Helper(); db.add(t, "cache-top", sha("7"), "") },
		"a stray file":          func(t *testing.T, _ database, dir string) { t.Helper(); write(t, dir+".txt", "") },
		"no database at all":    func(t *testing.T, db database, _ string) { t.Helper(); must(t, os.RemoveAll(db.root+"/image")) },
		"a database of others'": func(t *testing.T, _ database, dir string) { t.Helper(); must(t, os.Chown(filepath.Dir(dir), 1000, 0)) },
		"another's chain": func(t *testing.T, _ database, dir string) {
			t.Helper()
			must(t, os.Rename(dir, filepath.Dir(dir)+"/"+id64("f")))
		},
		"a link for a directory": func(t *testing.T, _ database, dir string) {
			t.Helper()
			must(t, os.Rename(dir, dir+".x"))
			must(t, os.Symlink(dir+".x", dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := database{t.TempDir()}
			low := db.add(t, "cache-low", sha("1"), "")
			top := db.add(t, "cache-top", sha("2"), low)
			spoil(t, db, db.root+"/image/overlay2/layerdb/sha256/"+top[len("sha256:"):])
			got, err := NewDocker(hostTree(t)).Digests(t.Context(), []string{db.root + "/overlay2/cache-top/diff"})
			if err == nil || got != nil {
				t.Errorf("%q, %v, want an error", got, err)
			}
		})
	}
}

// TestChain: the example of the OCI image specification's rule, and one by hand.
func TestChain(t *testing.T) {
	if got := chainOn("", sha("1")); got != sha("1") {
		t.Errorf("lowest: %s", got)
	}
	// printf 'sha256:11…1 sha256:22…2' | sha256sum
	const want = "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5"
	if got := chainOn(sha("1"), sha("2")); got != want {
		t.Errorf("second: %s, want %s", got, want)
	}
}

// FuzzDockerLayer: what passes the check is safe to use as a name, and a digest.
func FuzzDockerLayer(f *testing.F) {
	f.Add("cache", sha("1"), "")
	f.Add("../x", sha("2"), sha("1"))
	f.Fuzz(func(t *testing.T, cacheID, diff, parent string) {
		l := dockerLayer{cacheID, diff, parent}
		if l.check(chainOn(parent, diff)) == nil && (!isDigest(diff) || cacheID == "" || filepath.Base(cacheID) != cacheID || cacheID == "..") {
			t.Errorf("%q", l)
		}
		if chainOn(parent, diff) != sha("0") && l.check(sha("0")) == nil {
			t.Error("of every chain")
		}
	})
}
