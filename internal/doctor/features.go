package doctor

import (
	"errors"
	"fmt"

	"github.com/assay-project/assay/internal/fanotify"
	"github.com/assay-project/assay/internal/layer"
	"github.com/assay-project/assay/internal/lease"
)

// features lists what Assay asks of the kernel, each from the room that uses it.
func features() []fanotify.Feature {
	return append(fanotify.Features(),
		fanotify.Feature{
			Name: "read leases", Since: "2.4",
			Without: "the kernel remembers no verdict: each open of a file that is known asks the agent",
			Remedy:  "use a kernel with CONFIG_FILE_LOCKING, and set fs.leases-enable to 1",
			Probe:   func() error { return notSupported(lease.Probe()) },
		},
		fanotify.Feature{
			Name: "UUIDs of filesystems", Since: "6.9",
			Without: "layers are not scanned ahead: their files are scanned when they are first opened",
			Remedy:  "use a kernel from 6.9 on; each storage's filesystem needs a UUID, as ext4, xfs and btrfs have",
			Probe:   func() error { return notSupported(layer.ProbeUUID()) },
		},
	)
}

// notSupported makes one error of those with which rooms say that a feature is missing.
func notSupported(err error) error {
	if errors.Is(err, lease.ErrNotSupported) || errors.Is(err, layer.ErrNotSupported) {
		return fmt.Errorf("%w: %w", fanotify.ErrNotSupported, err)
	}
	return err
}
