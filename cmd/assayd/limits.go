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
	// spareGroups are those of root's other programs.
	spareGroups = 16
)

// raiseLimits raises what bounds the agent as far as it may and needs to, and says so.
// It returns how many descriptors there can be.
func raiseLimits(log *slog.Logger) int {
	if err := raiseGroups(log); err != nil {
		log.Warn("the limit of fanotify groups cannot be raised: beyond it, containers of a tenant share a group", "error", err,
			"remedy", fmt.Sprintf("sysctl fs.fanotify.max_user_groups=%d", wantGroups))
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		log.Warn("the limit of descriptors cannot be told", "error", err)
		return 1024
	}
	want := wanted(files.Max)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &want); err == nil {
		files = want
	}
	return int(min(files.Cur, maxDescriptors)) //nolint:gosec // a handful of digits
}

// wanted is the limit of descriptors that the agent sets itself.
func wanted(hard uint64) unix.Rlimit { return unix.Rlimit{Cur: min(hard, maxDescriptors), Max: hard} }

// checkGroups says what is wrong with the limit of fanotify groups for so many tenants
// and containers, or "".
func checkGroups(tenants, containers int) string {
	have, err := readKnob(groupsKnob)
	if err != nil || have >= tenants+containers+spareGroups {
		return ""
	}
	return fmt.Sprintf("fs.fanotify.max_user_groups is %d: with %d tenants and %d containers, containers of a tenant share fanotify groups, "+
		"and where no group is left to share they are refused; sysctl fs.fanotify.max_user_groups=%d", have, tenants, containers, wantGroups)
}

// readKnob reads a number of the kernel's.
func readKnob(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func raiseGroups(log *slog.Logger) error {
	was, err := readKnob(groupsKnob)
	if err != nil || was >= wantGroups {
		return err
	}
	if err := os.WriteFile(groupsKnob, []byte(strconv.Itoa(wantGroups)), 0); err != nil {
		return err
	}
	log.Info("raised the limit of fanotify groups", "fs.fanotify.max_user_groups", wantGroups, "was", was)
	return nil
}
