package tenant

import (
	"fmt"
	"slices"
	"strings"
)

// reachable notes tenants and patterns that select nothing because an exemption
// or an earlier tenant already has it.
func (d *decoder) reachable(drafts []draft, exempted []selector) {
	taken := ledger{byLabels: make(map[string]*claim)}
	for _, s := range exempted {
		taken.add(taker{
			who: "an exemption", all: "an exemption selects all that it does",
			remedy: "remove it, or exempt less: exemptions come first",
		}, s)
	}
	for _, t := range drafts {
		before := taken.concerning(t.Match)
		if by := before.all(); by != nil {
			if t.selector.clean {
				d.add(t.name.at, by.remedy, "this tenant is never used: %s", by.all)
			}
			continue
		}
		for _, p := range t.selector.patterns {
			if by, who, ok := before.covering(p.text); ok {
				d.add(p.at, "remove it, or move it before what takes it: exemptions come first, then the first tenant that matches",
					"namespaces: %q is never used here: %q of %s has it", p.text, by, who)
			}
		}
		taken.add(t.taker(), t.selector)
	}
}

// A taker is an exemption or a tenant, in messages to those after it.
type taker struct {
	who         string
	all, remedy string // to one for whom it leaves nothing
}

func (t *draft) taker() taker {
	takes := "selects all that it does"
	if t.Match.Everything() {
		takes = "matches everything"
	}
	return taker{
		who: fmt.Sprintf("tenant %q", t.Name), all: fmt.Sprintf("the one in line %d %s", t.name.at.line, takes),
		remedy: "move it before that one: the first that matches wins",
	}
}

// A ledger is what is already taken. What asks for the same labels shares a claim.
type ledger struct {
	claims   claims
	byLabels map[string]*claim
}

type claims []*claim

// A claim is the namespaces that are taken from containers with certain labels.
type claim struct {
	labels Match             // without its namespaces
	all    *taker            // who leaves no namespace; nil if some is left
	who    map[string]string // by pattern
	globs  []string          // the patterns that are more than a plain name
}

// add notes that by takes what s selects.
func (l *ledger) add(by taker, s selector) {
	if !s.clean {
		return
	}
	id := fmt.Sprintf("%q %q", s.NamespaceLabels, s.PodLabels) // maps are printed in order
	taken := l.byLabels[id]
	if taken == nil {
		taken = &claim{
			labels: Match{NamespaceLabels: s.NamespaceLabels, PodLabels: s.PodLabels},
			who:    make(map[string]string),
		}
		l.claims, l.byLabels[id] = append(l.claims, taken), taken
	}
	if taken.all == nil && s.everyNamespace() {
		taken.all = &by
	}
	for _, p := range s.patterns {
		taken.add(by.who, p.text)
	}
}

// concerning returns the claims whose labels every container that m selects surely
// has.
func (l *ledger) concerning(m Match) claims {
	var some claims
	for _, c := range l.claims {
		if implied(c.labels.NamespaceLabels, m.NamespaceLabels) && implied(c.labels.PodLabels, m.PodLabels) {
			some = append(some, c)
		}
	}
	return some
}

// all returns who leaves no namespace, or nil.
func (cs claims) all() *taker {
	for _, c := range cs {
		if c.all != nil {
			return c.all
		}
	}
	return nil
}

// covering returns the pattern that surely takes all that pattern selects, and whose
// it is.
func (cs claims) covering(pattern string) (by, who string, ok bool) {
	for _, c := range cs {
		if by, ok := c.covering(pattern); ok {
			return by, c.who[by], true
		}
	}
	return "", "", false
}

func (c *claim) add(who, pattern string) {
	if _, taken := c.who[pattern]; taken {
		return
	}
	c.who[pattern] = who
	if !plain(pattern) {
		c.globs = append(c.globs, pattern)
	}
}

// implied reports whether labels that pass asked surely pass wanted.
func implied(wanted, asked map[string]string) bool {
	for key, pattern := range wanted {
		narrower, ok := asked[key]
		if !ok || pattern != narrower && !matchesEverything(pattern) && (!plain(narrower) || !matches(pattern, narrower)) {
			return false
		}
	}
	return true
}

// covering returns the pattern that surely selects all that pattern selects:
// the same one or, for a plain name, one that matches it.
func (c *claim) covering(pattern string) (by string, ok bool) {
	if _, same := c.who[pattern]; same {
		return pattern, true
	}
	if !plain(pattern) {
		return "", false
	}
	i := slices.IndexFunc(c.globs, func(glob string) bool { return matches(glob, pattern) })
	if i < 0 {
		return "", false
	}
	return c.globs[i], true
}

// plain reports whether a pattern selects just the text that it spells.
func plain(pattern string) bool { return !strings.ContainsAny(pattern, `*?[\`) }
