package main

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	groupsKnob = "/proc/sys/fs/fanotify/max_user_groups"
	// wantGroups is enough for a group per container on any node; the limit costs
	// nothing by itself.
	wantGroups = 65536
)

// raiseLimits raises what bounds the agent as far as it may, says so, and returns
// how many events may be held at once: half of the descriptors. The other half
// is for events being read, scanners, and everything else.
func raiseLimits(log *slog.Logger) (maxHeld int64) {
	if err := raiseGroups(log); err != nil {
		log.Warn("the limit of fanotify groups cannot be raised: beyond it, containers of a tenant share a group", "error", err,
			"remedy", fmt.Sprintf("sysctl fs.fanotify.max_user_groups=%d", wantGroups))
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		log.Warn("the limit of descriptors cannot be told", "error", err)
		return 512
	}
	if files.Cur < files.Max {
		raised := unix.Rlimit{Cur: files.Max, Max: files.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			files = raised
		}
	}
	return int64(min(files.Cur, 1<<20) / 2)
}

func raiseGroups(log *slog.Logger) error {
	text, err := os.ReadFile(groupsKnob)
	if err != nil {
		return err
	}
	was, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || was >= wantGroups {
		return err
	}
	if err := os.WriteFile(groupsKnob, []byte(strconv.Itoa(wantGroups)), 0); err != nil {
		return err
	}
	log.Info("raised the limit of fanotify groups", "fs.fanotify.max_user_groups", wantGroups, "was", was)
	return nil
}
