package e2e

import (
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// TestSpecialFiles: what is no regular file works as if there were no gate.
func TestSpecialFiles(t *testing.T) {
	agent := suite.StartAgent(t, suite.Hashes(t))
	tests := []struct{ name, script, want string }{
		{"null", "cat /dev/null; echo gone > /dev/null; echo ok", "ok\n"},
		{"zero", "head -c 70000 /dev/zero | wc -c", "70000\n"},
		{"directories", "ls /data/many | wc -l; mkdir /tmp/d; ls /tmp/d; echo ok", "16\nok\n"},
		{"socket", "guest socket /tmp/s", "round trip\n"},
		// An open for reading waits for one for writing and the other way round: a
		// gate that opened the FIFO itself would let one side through too early, and
		// the two would lose step.
		{"fifo", `mkfifo /tmp/f
			i=0
			while [ $i -lt 200 ]; do
				echo $i > /tmp/f &
				read got < /tmp/f || exit 1
				wait
				[ "$got" = $i ] || { echo "round $i read $got"; exit 1; }
				i=$((i+1))
			done
			echo ok`, "ok\n"},
		// With nobody at the other end, an open does not come back.
		{"lonely fifo", `mkfifo /tmp/f
			(cat /tmp/f; echo ended) &
			sleep 1
			kill $! && echo still waiting`, "still waiting\n"},
	}
	for _, e := range suite.Engines() {
		t.Run(e.Name(), func(t *testing.T) {
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					r := e.Run(t, harness.Spec{Args: []string{"sh", "-c", tt.script}, Gate: agent.Gate("")})
					if r.Code != 0 || r.Stdout != tt.want {
						t.Fatalf("want %q: %s", tt.want, r)
					}
				})
			}
		})
	}
}
