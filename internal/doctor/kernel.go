package doctor

import (
	"errors"
	"fmt"

	"github.com/assay-project/assay/internal/fanotify"
)

// kernel tries every feature. self is the process that tries.
func kernel(features []fanotify.Feature, self *process) []Check {
	checks := make([]Check, 0, len(features))
	for _, f := range features {
		checks = append(checks, probe(&f, self))
	}
	return checks
}

// probe tries one feature and says what the result means.
func probe(f *fanotify.Feature, self *process) Check {
	check := Check{Area: AreaKernel, Name: f.Name}
	if !self.root() {
		check.Status = Unknown
		check.Detail = "trying it needs root"
		check.Remedy = runAsRoot
		return check
	}
	err := f.Probe()
	switch {
	case err == nil:
		check.Status = OK
		check.Detail = "works"
	case !errors.Is(err, fanotify.ErrNotSupported):
		check.Status = Unknown
		check.Detail = fmt.Sprintf("could not be tried: %v", err)
		check.Remedy = "run the doctor again; if it stays so, report it with this message"
	default:
		check.Status = Warn
		if f.Required {
			check.Status = Fail
		}
		check.Detail = fmt.Sprintf("%v (in Linux since %s). Without it: %s", err, f.Since, f.Without)
		check.Remedy = f.Remedy
	}
	return check
}
