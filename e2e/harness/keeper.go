package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Keepers returns the pids of the agent's keepers: one, but for moments.
func (a *Agent) Keepers() []int {
	socket := filepath.Join(filepath.Dir(a.Socket), "keeper.sock")
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	var pids []int
	for _, dir := range dirs {
		// A process that is gone by now or a zombie reads as empty.
		args, _ := os.ReadFile(dir + "/cmdline")
		if f := strings.Split(string(args), "\x00"); len(f) > 2 && filepath.Base(f[0]) == "assay-keeper" && f[2] == socket {
			pid, _ := strconv.Atoi(filepath.Base(dir)) // the glob says so
			pids = append(pids, pid)
		}
	}
	return pids
}

// Keeper returns the pid of the agent's keeper.
func (a *Agent) Keeper(tb testing.TB) int {
	tb.Helper()
	pids := a.Keepers()
	if len(pids) != 1 {
		tb.Fatalf("keepers of the agent are %v, want one", pids)
	}
	return pids[0]
}

// endKeepers ends what would otherwise wait for the next agent.
func (a *Agent) endKeepers(tb testing.TB) {
	tb.Helper()
	for _, pid := range a.Keepers() {
		_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended by itself
	}
	ctx, cancel := cleanupContext()
	defer cancel()
	err := eventually(ctx, patience, func() error {
		if pids := a.Keepers(); len(pids) > 0 {
			return fmt.Errorf("keepers %v do not end", pids)
		}
		return nil
	})
	if err != nil {
		tb.Error(err)
	}
}
