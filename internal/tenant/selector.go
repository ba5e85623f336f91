package tenant

import "strings"

// A selector is a Match as read, and where its patterns stand.
type selector struct {
	Match
	patterns []located // of Namespaces
	clean    bool      // nothing was wrong with it; else what it selects is not known
}

// match reads what selects a tenant's containers.
func (d *decoder) match(n *node, known labelled) selector {
	var s selector
	d.selector(n, "match", &s, known.namespace, key{name: "podLabels", read: d.conditions(&s.PodLabels, known.pod)})
	return s
}

// exempt reads the containers that are not guarded.
func (d *decoder) exempt(n *node, known labelled) (exempt []Match, read []selector) {
	if n == nil {
		return nil, nil
	}
	d.list(func(_ string, item *node) {
		s := d.exemption(item, known)
		exempt, read = append(exempt, s.Match), append(read, s)
	})("exempt", n)
	return exempt, read
}

// exemption reads one of them, and sees to it that it leaves something guarded.
func (d *decoder) exemption(n *node, known labelled) selector {
	var s selector
	d.selector(n, "an exemption", &s, known.namespace,
		refused(whyItself, "exempt by namespaces or namespaceLabels", "podLabels")[0])
	if !s.clean || s.asksLabels() {
		return s
	}
	if len(s.patterns) == 0 {
		d.add(n.at, "name the namespaces to exempt",
			"an exemption without namespaces would exempt every container, so nothing would be guarded")
	}
	for _, p := range s.patterns {
		if strings.Trim(p.text, "*?") == "" {
			d.add(p.at, "name the namespaces to exempt",
				"namespaces: %q would exempt every container, so nothing would be guarded", p.text)
		}
	}
	return s
}

// selector reads a selector, called what in messages; podLabels is its key of that
// name.
func (d *decoder) selector(n *node, what string, s *selector, namespaceLabels check, podLabels key) {
	before := len(d.found)
	keys := []key{
		{name: "namespaces", read: d.filled(d.texts(&s.patterns, checkNamespace),
			"it would select nothing", "name namespaces, or leave the key out")},
		{name: "namespaceLabels", read: d.conditions(&s.NamespaceLabels, namespaceLabels)},
		podLabels,
	}
	keys = append(keys, refused(whyForged, "select by namespaces or namespaceLabels, which the platform sets",
		"labels", "annotations", "images", "image", "names", "name", "pods", "pod", "containers", "users")...)
	d.mapping(n, what, keys)
	if len(s.patterns) > 0 {
		s.Namespaces = texts(s.patterns)
	}
	s.clean = len(d.found) == before
}

// conditions reads patterns of labels' values, and refuses none at all.
func (d *decoder) conditions(dst *map[string]string, keys check) reader {
	read := d.labels(dst, keys, checkLabelPattern)
	return func(name string, n *node) {
		if n.kind == kindMapping && len(n.fields) == 0 {
			d.add(n.at, "name labels, or leave the key out", "%s is empty: it would ask for nothing", name)
			return
		}
		read(name, n)
	}
}
