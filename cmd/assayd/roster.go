package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/assay-project/assay/internal/keeper"
)

// A roster is a directory with a file for each guarded container, beside the agent's
// socket, where it goes with a reboot. It tells the next agent which containers ran
// unguarded, if the keeper ended with the last one: those it guards again.
type roster struct {
	dir string
	log *slog.Logger
}

// listed is what a file says.
type listed struct {
	Key   string          `json:"key"`
	State json.RawMessage `json:"state"`
}

// file is where a key's file is: keys hold what paths may not.
func (r *roster) file(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(r.dir, hex.EncodeToString(sum[:16])+".json")
}

// put writes a container's file.
func (r *roster) put(e *keeper.Entry) {
	text, err := json.Marshal(listed{Key: e.Key, State: e.State})
	if err == nil {
		err = os.MkdirAll(r.dir, 0o700)
	}
	if err == nil {
		// Whole or not at all, as far as that matters without a crash of the machine.
		next := r.file(e.Key) + ".new"
		if err = os.WriteFile(next, text, 0o600); err == nil {
			err = os.Rename(next, r.file(e.Key))
		}
	}
	if err != nil {
		r.log.Warn("the list of guarded containers is not complete", "error", err)
	}
}

// drop removes a container's file.
func (r *roster) drop(key string) {
	if err := os.Remove(r.file(key)); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.log.Warn("the list of guarded containers is not up to date", "error", err)
	}
}

// missing returns the containers on the list that the keeper has not kept.
func (r *roster) missing(kept []keeper.Entry) []keeper.Entry {
	known := make(map[string]bool, len(kept))
	for i := range kept {
		known[kept[i].Key] = true
	}
	files, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.log.Warn("containers that run unguarded cannot be told", "error", err)
	}
	var lost []keeper.Entry
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		e, err := r.read(f.Name())
		if err != nil {
			r.log.Warn("a line of the list of guarded containers is damaged", "file", f.Name(), "error", err)
			continue
		}
		if !known[e.Key] {
			lost = append(lost, e)
		}
	}
	return lost
}

func (r *roster) read(name string) (keeper.Entry, error) {
	text, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		return keeper.Entry{}, err
	}
	var l listed
	if err := json.Unmarshal(text, &l); err != nil {
		return keeper.Entry{}, err
	}
	return keeper.Entry{Key: l.Key, State: l.State}, nil
}
