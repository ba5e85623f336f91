package tenant

import (
	"slices"
	"strings"
)

// The reasons that people get for what they may well try.
const (
	whyNoPaths = "a tenant controls the paths inside its containers and would move malware to an excluded one"
	whyForged  = "whoever starts the container chooses it, and would choose the laxest policy"
	whyItself  = "a pod must not exempt itself, whoever sets its labels"
)

// A draft is a tenant as read, with what is needed to check it against the others.
type draft struct {
	Tenant
	name     located
	selector selector // not clean if the tenant could not be read either
}

// fallback returns the tenant for whatever matches no other.
func fallback(scanners []Scanner) Tenant {
	t := newTenant(scanners)
	t.Name = defaultName
	return t
}

// newTenant returns a tenant with every default filled in.
func newTenant(scanners []Scanner) Tenant {
	return Tenant{
		Mode: Enforce, OnOpen: true, OnExec: true,
		Stages:   []Stage{{Scanners: scannerNames(scanners)}},
		Deadline: defaultDeadline,
		OnError:  Deny, OnTimeout: Deny, OnUnscannable: Deny, OnTooLarge: Deny,
		KernelMarks: MarkLayers, VolumeMarks: VolumeMount,
		ScanAhead: AheadLayers, OnGeneration: GenerationRescan,
		Grace: defaultGrace, OnAgentGone: Deny, OnUnguarded: Deny,
		ExcludeMounts: []string{},
	}
}

func scannerNames(scanners []Scanner) []string {
	names := make([]string, len(scanners))
	for i, s := range scanners {
		names[i] = s.Name
	}
	return names
}

// tenants reads the tenants, checks what each can still get, and adds the one
// for everything else if there is none.
func (d *decoder) tenants(n *node, scanners []Scanner, known labelled, exempted []selector) []Tenant {
	var drafts []draft
	if n != nil {
		d.atMost(maxTenants, d.list(func(_ string, item *node) { drafts = append(drafts, d.tenant(item, scanners, known)) }))("tenants", n)
	}
	names := make([]located, len(drafts))
	tenants := make([]Tenant, len(drafts))
	for i, t := range drafts {
		names[i], tenants[i] = t.name, t.Tenant
	}
	d.unique("tenant", names)
	d.reachable(drafts, exempted)
	if slices.ContainsFunc(tenants, func(t Tenant) bool { return t.Match.Everything() }) {
		return tenants
	}
	isDefault := func(t draft) bool { return t.Name == defaultName && t.selector.clean }
	if i := slices.IndexFunc(drafts, isDefault); i >= 0 {
		d.add(names[i].at, "rename it, or let it match everything with match: {}",
			"tenant %q does not match everything, and no other tenant does", defaultName)
	}
	return append(tenants, fallback(scanners))
}

func (d *decoder) tenant(n *node, scanners []Scanner, known labelled) draft {
	t := draft{Tenant: newTenant(scanners), name: located{at: n.at}}
	seen := d.mapping(n, "a tenant", []key{
		d.nameKey(&t.name),
		{name: "match", read: func(_ string, n *node) { t.selector = d.match(n, known) }},
		{name: "mode", read: enum(d, &t.Mode, Enforce, Audit)},
		{name: "on", read: func(name string, n *node) { d.on(name, n, &t.Tenant) }},
		{name: "stages", read: func(name string, n *node) { t.Stages = d.stages(name, n, scanners) }},
		{name: "deadline", read: d.duration(&t.Deadline, minDeadline, maxDeadline)},
		{name: "onError", read: enum(d, &t.OnError, Allow, Deny)},
		{name: "onTimeout", read: enum(d, &t.OnTimeout, Allow, Deny)},
		{name: "onUnscannable", read: enum(d, &t.OnUnscannable, Allow, Deny)},
		{name: "onTooLarge", read: enum(d, &t.OnTooLarge, Allow, Deny)},
		{name: "maxSize", read: d.size(&t.MaxSize, 0)},
		{name: "kernelMarks", read: enum(d, &t.KernelMarks, MarkLayers, MarkAll, MarkReadonly, MarkOff)},
		{name: "volumeMarks", read: enum(d, &t.VolumeMarks, VolumeMount, VolumeSuperblock)},
		{name: "scanAhead", read: enum(d, &t.ScanAhead, AheadLayers, AheadOff)},
		{name: "onNewGeneration", read: enum(d, &t.OnGeneration, GenerationRescan, GenerationWait)},
		{name: "grace", read: d.duration(&t.Grace, minGrace, maxGrace)},
		{name: "onAgentGone", read: enum(d, &t.OnAgentGone, Allow, Deny)},
		{name: "onUnguarded", read: enum(d, &t.OnUnguarded, Allow, Deny)},
		{name: "exclude", read: func(_ string, n *node) { t.ExcludeMounts = d.exclude(n) }},
	})
	d.required(n, seen, "a tenant", "name")
	t.Name, t.Match = t.name.text, t.selector.Match
	_, hasMatch := seen["match"]
	t.selector.clean = n.kind == kindMapping && (!hasMatch || t.selector.clean)
	return t
}

func (d *decoder) on(name string, n *node, t *Tenant) {
	var ops []located
	d.filled(d.texts(&ops, oneOf("open", "exec")),
		"nothing would be scanned", "name open, exec or both; containers to leave alone belong under exempt")(name, n)
	t.OnOpen = slices.Contains(texts(ops), "open")
	t.OnExec = slices.Contains(texts(ops), "exec")
}

func (d *decoder) exclude(n *node) []string {
	var mounts []located
	keys := append([]key{{name: "mounts", read: d.texts(&mounts, checkMount)}},
		refused(whyNoPaths, "exclude whole mounts by destination: mounts: [/path]",
			"paths", "path", "files", "globs", "patterns", "directories", "dirs", "extensions", "processes", "exes")...)
	d.mapping(n, "exclude", keys)
	return texts(mounts)
}

func (d *decoder) stages(name string, n *node, scanners []Scanner) []Stage {
	var stages []Stage
	d.filled(d.list(func(_ string, item *node) { stages = append(stages, d.stage(item, scanners)) }),
		"nothing would be scanned", "name at least one stage, or leave the key out for one stage with every scanner")(name, n)
	return stages
}

func (d *decoder) stage(n *node, scanners []Scanner) Stage {
	var names []located
	var list, decide *node
	seen := d.mapping(n, "a stage", append([]key{
		{name: "scanners", read: d.node(&list)},
		{name: "decide", read: d.node(&decide)},
	}, refused("it belongs to decide", "write decide: {quorum: N}", "quorum")...))
	d.required(n, seen, "a stage", "scanners")
	if list == nil {
		return Stage{}
	}
	d.filled(d.texts(&names, knownScanner(scanners)), "nothing would be scanned", "name at least one scanner")("scanners", list)
	s := Stage{Scanners: texts(names)}
	if decide != nil {
		s.Quorum = d.decide(decide, len(list.items))
	}
	return s
}

// knownScanner accepts names of configured scanners. A scanner whose own name
// is wrong may be any of them, so then everything passes.
func knownScanner(scanners []Scanner) check {
	names := scannerNames(scanners)
	return func(text string) (wrong, remedy string) {
		if slices.Contains(names, text) || slices.Contains(names, "") {
			return "", ""
		}
		return "is not a configured scanner", suggest(text, names)
	}
}

// decide reads the rule of a stage with n scanners as a quorum: all, any,
// {quorum: N}, or the same as text, "quorum: N".
func (d *decoder) decide(v *node, n int) int {
	quorum := 0
	if v.kind == kindMapping {
		seen := d.mapping(v, "decide", []key{{name: "quorum", read: d.quorum(&quorum, n)}})
		d.required(v, seen, "decide", "quorum")
		return quorum
	}
	number, isQuorum := strings.CutPrefix(v.text, "quorum:")
	switch {
	case v.kind == kindText && v.text == "all":
	case v.kind == kindText && v.text == "any":
		quorum = 1
	case v.kind == kindText && isQuorum:
		d.quorum(&quorum, n)("quorum", &node{at: v.at, kind: kindInteger, text: strings.TrimSpace(number)})
	default:
		d.add(v.at, "write all, any or {quorum: N}", "decide: %s is not a rule", describe(v))
	}
	return quorum
}

// quorum reads a number of scanners out of n.
func (d *decoder) quorum(dst *int, n int) reader {
	return d.count(dst, 1, max(1, n)) // an empty list of scanners is complained about already
}
