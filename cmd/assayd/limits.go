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

// limits share the agent's descriptors out. Half are for events that are held, a
// quarter for files that the kernel lets through under a lease; the rest is for
// events being read, scanners, and everything else.
type limits struct {
	descriptors int   // their numbers are below it
	held        int64 // events at once
	marks       int   // marked files at once
}

func share(descriptors uint64) limits {
	n := min(descriptors, 1<<20)
	return limits{descriptors: int(n), held: int64(n / 2), marks: int(n / 4)} //nolint:gosec // at most a million
}

// raiseLimits raises what bounds the agent as far as it may, and says so.
func raiseLimits(log *slog.Logger) limits {
	if err := raiseGroups(log); err != nil {
		log.Warn("the limit of fanotify groups cannot be raised: beyond it, containers of a tenant share a group", "error", err,
			"remedy", fmt.Sprintf("sysctl fs.fanotify.max_user_groups=%d", wantGroups))
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		log.Warn("the limit of descriptors cannot be told", "error", err)
		return share(1024)
	}
	if files.Cur < files.Max {
		raised := unix.Rlimit{Cur: files.Max, Max: files.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			files = raised
		}
	}
	return share(files.Cur)
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
