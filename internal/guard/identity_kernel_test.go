package guard

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/tenant"
)

// oneDigest resolves every layer to one digest.
type oneDigest struct{}

func (oneDigest) Digests(_ context.Context, dirs []string) ([]string, error) {
	return slices.Repeat([]string{"sha256:" + strings.Repeat("1", 64)}, len(dirs)), nil
}

// TestKernelUnpackedAgain: what was known of a layer is not known of another one in its
// place, though it has the same path, digest, file names, sizes and times. It fails
// without birth and change time in the identity.
func TestKernelUnpackedAgain(t *testing.T) {
	for name, remove := range map[string]string{
		"the directory":             `rm -r "$0"; mkdir "$0"; printf malware >"$0/good"`,
		"what is in it":             `rm -r "$0"/*; printf malware >"$0/good"`,
		"the file alone":            `printf malware >"$0/good"`,
		"another file in its place": `printf malware >"$0/new"; mv "$0/new" "$0/good"`,
	} {
		t.Run(name, func(t *testing.T) {
			for _, marks := range eachMarks() {
				t.Run(string(marks), func(t *testing.T) { unpackAgain(t, marks, remove) })
			}
		})
	}
}

// unpackAgain has another file where a layer had a known one.
func unpackAgain(t *testing.T, marks tenant.KernelMarks, remove string) {
	t.Helper()
	r, fake := memoryRig(t, marks, func(m *Memory) { m.Resolvers = []layer.Resolver{oneDigest{}} })
	c := sharing(t, 1, samples())[0]
	r.announced(t, c)
	r.remembered(t, c, "good", "content", marks, fake)
	c.Kill()
	eventually(t, "the container is released", func() bool { return len(r.Containers()) == 0 })
	if err := unix.Unmount(c.Merged, 0); err != nil {
		t.Fatal(err)
	}
	script := `touch -r "$0/good" "$0/../stamp"; ` + remove + `; touch -r "$0/../stamp" "$0/good"`
	begin(t, shell(t, script, c.Lower)).wantContent(t, "")
	next := kerneltest.StartContainer(t, kerneltest.NewOverlayOn(t, c.Lower), "")
	r.announced(t, next)
	denied(t, next, "good")
}

// TestKernelPosesAsLayers: a container's own file is not taken for the layer's that it
// was made of, nor the layer's for it. It fails without birth and change time in the
// identity.
func TestKernelPosesAsLayers(t *testing.T) {
	for _, marks := range eachMarks() {
		t.Run(string(marks), func(t *testing.T) {
			r, fake := memoryRig(t, marks)
			both := sharing(t, 2, samples())
			for _, c := range both {
				r.announced(t, c)
			}
			r.remembered(t, both[0], "good", "content", marks, fake)
			begin(t, both[1].Command(t, "cat", both[1].Path("good"))).wantContent(t, "content")
			pose := `cd "$0"; touch -r good stamp; printf malware >good; touch -r stamp good`
			begin(t, both[1].Command(t, "sh", "-e", "-c", pose, both[1].Merged)).wantContent(t, "")
			denied(t, both[1], "good")
			begin(t, both[0].Command(t, "cat", both[0].Path("good"))).wantContent(t, "content")

			// The other way round: the layer's file is bad, and the container's own good.
			if err := unix.Truncate(both[0].Path("bad"), 0); err != nil {
				t.Fatal(err)
			}
			mend := `cd "$0"; printf content >bad; touch -r good bad`
			begin(t, both[0].Command(t, "sh", "-e", "-c", mend, both[0].Merged)).wantContent(t, "")
			remembered := marks
			if marks == tenant.MarkLayers {
				remembered = tenant.MarkOff // of the container's own
			}
			r.remembered(t, both[0], "bad", "content", remembered, fake)
			denied(t, both[1], "bad")
		})
	}
}

// TestKernelInodeReused: a file that gets the inode number of one that was known is
// another file.
func TestKernelInodeReused(t *testing.T) {
	r, fake := memoryRig(t, tenant.MarkOff)
	c := kerneltest.NewContainer(t, map[string]string{"source": "content", "vol/empty": ""}, "mount --bind "+t.TempDir()+" vol")
	r.announced(t, c)
	reused := 0
	for range 10 {
		for _, file := range []string{"file", "vol/file"} {
			was := inode(t, c, "cp source "+file+"; stat -c %i "+file)
			r.remembered(t, c, file, "content", tenant.MarkOff, fake)
			if inode(t, c, "touch -r "+file+" stamp; rm "+file+"; printf malware >"+file+"; touch -r stamp "+file+"; stat -c %i "+file) == was {
				reused++
			}
			denied(t, c, file)
			inode(t, c, "rm "+file+" stamp")
		}
	}
	t.Logf("%d of 20 inode numbers were reused", reused)
}

// inode runs a script in the container that prints an inode number.
func inode(t *testing.T, c *kerneltest.Container, script string) string {
	t.Helper()
	out, err := c.Shell(t, script)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

// TestKernelOverlayInContainer: what an overlay shows that the container mounted by
// itself, on directories of its choice, is not known from its root filesystem, though
// the handles of its files name the same files behind. It fails if files of the root
// filesystem and others are looked up in one scope.
func TestKernelOverlayInContainer(t *testing.T) {
	r, fake := memoryRig(t, tenant.MarkAll)
	own := t.TempDir()
	for _, dir := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(own, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := `lowerdir="$0"/../lower,upperdir=` + own + `/upper,workdir=` + own + `/work`
	c := kerneltest.NewContainer(t, map[string]string{"good": "content", "mnt/empty": ""}, "mount -t overlay overlay -o "+options+" mnt")
	r.announced(t, c)
	r.remembered(t, c, "good", "content", tenant.MarkAll, fake)
	scans := fake.Calls()
	begin(t, c.Command(t, "cat", c.Path("mnt/good"))).wantContent(t, "content")
	if fake.Calls() == scans {
		t.Error("the other overlay's file was known from the container's layer")
	}
	pose := `cd "$0"; touch -r good stamp; printf malware >mnt/good; touch -r stamp mnt/good`
	begin(t, c.Command(t, "sh", "-e", "-c", pose, c.Merged)).wantContent(t, "")
	denied(t, c, "mnt/good")
	begin(t, c.Command(t, "cat", c.Path("good"))).wantContent(t, "content")
}
