package tenant

import (
	"slices"
	"strings"
)

// Trust names what the platform vouches for.
type Trust struct {
	// PodLabels are the keys, exact, of labels that only the platform can set on pods:
	// a Match may ask for them. Never nil.
	PodLabels []string
}

// A Namespace gives a namespace its labels.
type Namespace struct {
	Name   string
	Labels map[string]string // never nil
}

// Containerd says where containerd is asked about containers and layers.
type Containerd struct {
	Socket    string // default /run/containerd/containerd.sock
	Namespace string // containerd's own, not a Kubernetes one; default k8s.io
}

// An NRIMode says whether the agent connects to a runtime as an NRI plugin.
type NRIMode string

// The modes of NRI.
const (
	NRIAuto NRIMode = "auto" // once there is a socket
	NRIOn   NRIMode = "on"   // and it is a problem if there is none
	NRIOff  NRIMode = "off"
)

// NRI configures the plugin by which a runtime tells of its containers.
type NRI struct {
	Mode   NRIMode // default auto
	Socket string  // of the runtime; default /var/run/nri/nri.sock
	Index  string  // two digits: the place among the runtime's plugins; default 10
	Hook   string  // the hook program, on the host; default "", assay-hook beside the agent's own program
}

// labelled says which labels selectors may ask for.
type labelled struct {
	pod       check // keys of pod labels
	namespace check // keys of namespace labels
}

// labelled reads what the platform vouches for, into c, and returns what selectors
// can do with it.
func (d *decoder) labelled(trust, namespaces *node, c *Config) labelled {
	before := len(d.found)
	if trust != nil {
		var keys []located
		d.mapping(trust, "trust", []key{{name: "podLabels", read: d.texts(&keys, checkLabelKey)}})
		c.Trust.PodLabels = texts(keys)
	}
	// A key that is wrong may be any, so then everything passes.
	known := labelled{pod: checkLabelKey, namespace: checkLabelKey}
	if len(d.found) == before {
		known.pod = trusted(c.Trust.PodLabels)
	}
	before = len(d.found)
	c.Namespaces = d.namespaces(namespaces)
	if len(d.found) == before {
		known.namespace = told(c.Namespaces)
	}
	return known
}

// trusted accepts the keys of pod labels that the platform vouches for.
func trusted(keys []string) check {
	return func(text string) (wrong, remedy string) {
		if wrong, remedy = checkLabelKey(text); wrong != "" || slices.Contains(keys, text) {
			return wrong, remedy
		}
		remedy = "name it under trust.podLabels if nobody but the platform can set it on pods, or select by namespaces"
		if near := nearest(text, keys); near != "" {
			remedy = "did you mean " + `"` + near + `"? Otherwise ` + remedy
		}
		return "is not trusted: whoever creates the pod may set it, and would choose the laxest policy", remedy
	}
}

// told accepts the keys of labels that at least one namespace has. Without one the
// selector would select nothing: nobody else tells the agent labels of namespaces.
func told(namespaces []Namespace) check {
	var keys []string
	for _, n := range namespaces {
		for key := range n.Labels {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	return func(text string) (wrong, remedy string) {
		if wrong, remedy = checkLabelKey(text); wrong != "" {
			return wrong, remedy
		}
		if _, ok := slices.BinarySearch(keys, text); ok {
			return "", ""
		}
		remedy = "list those that have it under namespaces, as in {name: pay-eu, labels: {" + text + ": ...}}"
		if near := nearest(text, keys); near != "" {
			remedy = "did you mean " + `"` + near + `"? Otherwise ` + remedy
		}
		return "is a label that no namespace is known to have", remedy
	}
}

// namespaces reads the labels of namespaces.
func (d *decoder) namespaces(n *node) []Namespace {
	if n == nil {
		return nil
	}
	var namespaces []Namespace
	var names []located
	d.atMost(maxNamespaces, d.list(func(_ string, item *node) {
		ns := Namespace{Labels: map[string]string{}}
		name := located{at: item.at}
		seen := d.mapping(item, "a namespace", []key{
			{name: "name", read: func(key string, n *node) {
				name.at = n.at
				d.text(&name.text, checkNamespaceName)(key, n)
			}},
			{name: "labels", read: d.labels(&ns.Labels, checkLabelKey, checkLabelValue)},
		})
		d.required(item, seen, "a namespace", "name")
		d.required(item, seen, "a namespace", "labels")
		ns.Name = name.text
		namespaces, names = append(namespaces, ns), append(names, name)
	}))("namespaces", n)
	d.unique("namespace", names)
	return namespaces
}

func (d *decoder) containerd(n *node, c *Containerd) {
	d.mapping(n, "containerd", []key{
		{name: "socket", read: d.text(&c.Socket, checkSocket)},
		{name: "namespace", read: d.text(&c.Namespace, checkContainerdNamespace)},
	})
}

func (d *decoder) nri(n *node, c *NRI) {
	d.mapping(n, "nri", []key{
		{name: "mode", read: enum(d, &c.Mode, NRIAuto, NRIOn, NRIOff)},
		{name: "socket", read: d.text(&c.Socket, checkSocket)},
		{name: "index", read: d.text(&c.Index, checkIndex)},
		{name: "hook", read: d.text(&c.Hook, checkPath)},
	})
}

// checkNamespaceName accepts what can be a namespace's name, on any platform.
func checkNamespaceName(text string) (wrong, remedy string) {
	switch {
	case text == "":
		return "is not a name", "name the namespace"
	case !plain(text):
		return "is a pattern", "give each namespace an entry with its exact name; patterns belong into match"
	}
	return "", ""
}

// checkContainerdNamespace accepts containerd's identifiers.
func checkContainerdNamespace(text string) (wrong, remedy string) {
	if len(text) > 76 || !containerdIdentifier.MatchString(text) {
		return "is not a namespace of containerd", "write one of those that `ctr namespaces list` shows; that of Kubernetes is k8s.io"
	}
	return "", ""
}

// checkIndex accepts the index of an NRI plugin.
func checkIndex(text string) (wrong, remedy string) {
	if len(text) != 2 || strings.Trim(text, "0123456789") != "" {
		return "is not two digits", `write "00" to "99", in quotes: runtimes call plugins in this order`
	}
	return "", ""
}
