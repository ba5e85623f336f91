package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/assay-project/assay/internal/api"
)

// keeperSummary is what holds the containers while the agent is away, in a line.
func (p *program) keeperSummary(st *api.Status) cell {
	k := &st.Keeper
	if k.Backend == api.KeeperOff {
		return cell{text: "off: containers are unguarded while the agent is away", style: yellow}
	}
	parts := []string{"none"}
	if k.PID != 0 {
		parts = []string{fmt.Sprintf("pid %d, for %s", k.PID, p.since(k.Since))}
	}
	if k.Backend == api.KeeperSystemd && k.PID != 0 {
		parts = []string{"systemd, for " + p.since(k.Since)}
	}
	kept := 0
	for _, c := range st.Containers {
		if c.Kept {
			kept++
		}
	}
	parts = append(parts, fmt.Sprintf("holds %d of %s", kept, plural(len(st.Containers), "container")))
	leases, pending := 0, 0
	for _, e := range k.Entries {
		leases, pending = leases+e.Leases, pending+e.Pending
	}
	if k.Backend == api.KeeperProcess && k.PID != 0 {
		parts = append(parts, plural(leases, "lease"), plural(pending, "event")+" unread")
	}
	if k.Lost > 0 {
		parts = append(parts, fmt.Sprintf("%d lost before", k.Lost))
	}
	line := cell{text: strings.Join(parts, ", ")}
	if k.Trouble != "" {
		line.text, line.style = line.text+": "+k.Trouble, red
	}
	return line
}

// takeOverSummary is what came of the last take-over, in a line.
func (p *program) takeOverSummary(t *api.TakeOverStatus) cell {
	parts := []string{fmt.Sprintf("%s ago, %s in %v", p.since(t.At), plural(t.Containers, "container"), time.Duration(t.Took)*time.Microsecond)}
	if !t.Since.IsZero() {
		parts = append(parts, fmt.Sprintf("%v without an agent", t.At.Sub(t.Since).Round(time.Millisecond)))
	}
	if n := t.Settled + t.Answered; n > 0 {
		parts = append(parts, fmt.Sprintf("%d opens answered without one", n))
	}
	line := cell{}
	for _, bad := range []struct {
		ids  []string
		what string
	}{{t.Unguarded, "ran unguarded"}, {t.Failed, "could not be taken over"}} {
		if len(bad.ids) > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", len(bad.ids), bad.what))
			line.style = red
		}
	}
	if t.Why != "" {
		parts = append(parts, "the last agent: "+t.Why)
	}
	line.text = strings.Join(parts, ", ")
	return line
}
