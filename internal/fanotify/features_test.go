package fanotify

import "testing"

// TestKernelFeatures holds on every kernel that the project is tested on: a
// machine where one fails cannot say anything about the rest.
func TestKernelFeatures(t *testing.T) {
	for _, f := range Features() {
		t.Run(f.Name, func(t *testing.T) {
			if err := f.Probe(); err != nil {
				t.Errorf("%v (since %s; %s)", err, f.Since, f.Remedy)
			}
		})
	}
}
