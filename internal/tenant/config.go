package tenant

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Defaults of the keys outside tenants.
const (
	defaultSocket      = "/run/assay/agent.sock"
	defaultState       = "/var/lib/assay"
	defaultConnections = 4
	// defaultClamdMaxFileSize is the default of clamd.conf(5) from 1.0 on.
	defaultClamdMaxFileSize = 100 << 20
	defaultRecordSize       = 100 << 20
	defaultRecordKeep       = 5
	defaultCacheMemory      = 256 << 20
	defaultCacheDisk        = 256 << 20
	leastCache              = 4 << 20
	defaultGrace            = 30 * time.Second
	keeperSocket            = "keeper.sock"
	defaultDeadline         = 5 * time.Second
	defaultContainerd       = "/run/containerd/containerd.sock"
	// defaultContainerdNamespace is where containerd's Kubernetes service keeps its containers.
	defaultContainerdNamespace = "k8s.io"
	defaultNRI                 = "/var/run/nri/nri.sock"
	defaultNRIIndex            = "10"
)

// builtinName and defaultName are what Assay adds itself: the scanner if no
// other is configured, the tenant if none matches everything.
const (
	builtinName = "builtin"
	defaultName = "default"
)

// Default returns the configuration of an agent without a file: the hash list
// scanner "builtin" without files, which knows the EICAR test file, and one
// enforcing tenant "default" for every container.
func Default() *Config {
	c := newConfig()
	c.Scanners = []Scanner{{Name: builtinName, Hashlist: &Hashlist{Files: []string{}}}}
	c.Tenants = []Tenant{fallback(c.Scanners)}
	c.Keeper.placeBeside(c.Socket)
	return c
}

// Load reads and checks the configuration file at path. The error is an *Error
// if the file says something wrong, else it wraps the reason why the file
// cannot be read.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file cannot be opened: %w (check the path and its permissions)", err)
	}
	defer f.Close()
	// One byte more than Parse accepts, so that it sees when there is too much.
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("configuration file cannot be read: %w (name a regular file)", err)
	}
	return Parse(path, data)
}

// Parse checks a configuration; name is what errors call the file. The error is
// always an *Error with every problem that was found.
func Parse(name string, data []byte) (*Config, error) {
	d := &decoder{problems{file: name}}
	c := newConfig()
	if root := parseYAML(data, &d.problems); root != nil {
		d.config(root, c)
	}
	c.Keeper.placeBeside(c.Socket)
	if err := d.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func newConfig() *Config {
	return &Config{
		Socket: defaultSocket, State: defaultState,
		Cache:   Cache{Memory: defaultCacheMemory, Disk: defaultCacheDisk},
		Keeper:  Keeper{Backend: KeeperProcess},
		Records: Records{MaxSize: defaultRecordSize, Keep: defaultRecordKeep},
		Trust:   Trust{PodLabels: []string{}}, RecordLabels: []string{},
		Containerd: Containerd{Socket: defaultContainerd, Namespace: defaultContainerdNamespace},
		NRI:        NRI{Mode: NRIAuto, Socket: defaultNRI, Index: defaultNRIIndex},
	}
}

// config reads the whole file. What refers to something else is read after it,
// whatever the order in the file.
func (d *decoder) config(root *node, c *Config) {
	var scanners, tenants, exempt, trust, namespaces *node
	d.mapping(root, "the configuration", []key{
		{name: "socket", read: d.text(&c.Socket, checkSocket)},
		{name: "state", read: d.text(&c.State, checkPath)},
		{name: "scanners", read: d.node(&scanners)},
		{name: "tenants", read: d.node(&tenants)},
		{name: "cache", read: func(_ string, n *node) { d.cache(n, &c.Cache) }},
		{name: "keeper", read: func(_ string, n *node) { d.keeper(n, &c.Keeper) }},
		{name: "records", read: func(_ string, n *node) { d.records(n, c) }},
		{name: "exempt", read: d.node(&exempt)},
		{name: "trust", read: d.node(&trust)},
		{name: "namespaces", read: d.node(&namespaces)},
		{name: "containerd", read: func(_ string, n *node) { d.containerd(n, &c.Containerd) }},
		{name: "nri", read: func(_ string, n *node) { d.nri(n, &c.NRI) }},
	})
	c.Scanners = d.scanners(scanners)
	known := d.labelled(trust, namespaces, c)
	var exempted []selector
	c.Exempt, exempted = d.exempt(exempt, known)
	c.Tenants = d.tenants(tenants, c.Scanners, known, exempted)
}

func (d *decoder) cache(n *node, c *Cache) {
	d.mapping(n, "cache", []key{
		{name: "memory", read: d.size(&c.Memory, leastCache)},
		{name: "disk", read: func(name string, n *node) {
			least := int64(leastCache)
			if size, ok := parseSize(n.text); ok && size == 0 {
				least = 0 // stores nothing
			}
			d.size(&c.Disk, least)(name, n)
		}},
	})
}

func (d *decoder) keeper(n *node, k *Keeper) {
	d.mapping(n, "keeper", []key{
		{name: "backend", read: enum(d, &k.Backend, KeeperProcess, KeeperSystemd, KeeperOff)},
		{name: "socket", read: d.text(&k.Socket, checkSocket)},
	})
}

// placeBeside fills in the default: a directory for both sockets.
func (k *Keeper) placeBeside(agent string) {
	if k.Socket == "" {
		k.Socket = filepath.Join(filepath.Dir(agent), keeperSocket)
	}
}

func (d *decoder) records(n *node, c *Config) {
	var labels []located
	seen := d.mapping(n, "records", []key{
		{name: "file", read: d.text(&c.Records.File, checkPath)},
		{name: "maxSize", read: d.size(&c.Records.MaxSize, 1<<20)},
		{name: "keep", read: d.count(&c.Records.Keep, 1, 1000)},
		{name: "labels", read: d.texts(&labels, checkLabelKey)},
	})
	c.RecordLabels = texts(labels)
	_, file := seen["file"]
	_, named := seen["labels"]
	switch {
	case file || n.kind != kindMapping || named && len(seen) == 1:
	case named:
		d.add(n.at, "add file: /path/to/events.jsonl, or leave nothing but labels", "records has no file")
	default:
		d.add(n.at, "add file: /path/to/events.jsonl, or leave records out for none", "records has no file")
	}
}

// scanners reads the scanners; without any, the built-in one is added.
func (d *decoder) scanners(n *node) []Scanner {
	var scanners []Scanner
	var names []located
	if n != nil {
		d.atMost(maxScanners, d.list(func(_ string, item *node) {
			s, name := d.scanner(item)
			scanners, names = append(scanners, s), append(names, name)
		}))("scanners", n)
	}
	d.unique("scanner", names)
	if len(scanners) == 0 {
		return Default().Scanners
	}
	return scanners
}

// scanner reads one scanner and where its name stands.
func (d *decoder) scanner(n *node) (Scanner, located) {
	var s Scanner
	name := located{at: n.at}
	seen := d.mapping(n, "a scanner", []key{
		d.nameKey(&name),
		{name: "clamd", read: func(_ string, n *node) { s.Clamd = d.clamd(n) }},
		{name: "hashlist", read: func(_ string, n *node) { s.Hashlist = d.hashlist(n) }},
	})
	s.Name = name.text
	clamd, hasClamd := seen["clamd"]
	hashlist, hasHashlist := seen["hashlist"]
	const remedy = "give each scanner exactly one of clamd, hashlist"
	switch {
	case n.kind != kindMapping:
		return s, name
	case hasClamd && hasHashlist:
		second := clamd
		if hashlist.line > clamd.line || hashlist.line == clamd.line && hashlist.column > clamd.column {
			second = hashlist
		}
		d.add(second, remedy, "scanner %q has two drivers", s.Name)
	case !hasClamd && !hasHashlist:
		d.add(n.at, remedy, "scanner %q has no driver", s.Name)
	}
	d.required(n, seen, "a scanner", "name")
	return s, name
}

func (d *decoder) clamd(n *node) *Clamd {
	c := &Clamd{Connections: defaultConnections, MaxFileSize: defaultClamdMaxFileSize}
	seen := d.mapping(n, "clamd", []key{
		{name: "address", read: d.text(&c.Address, checkAddress)},
		{name: "connections", read: d.count(&c.Connections, 1, 256)},
		{name: "maxFileSize", read: d.size(&c.MaxFileSize, 1)},
	})
	d.required(n, seen, "clamd", "address")
	return c
}

func (d *decoder) hashlist(n *node) *Hashlist {
	var files []located
	d.mapping(n, "hashlist", []key{{name: "files", read: d.texts(&files, checkFiles)}})
	return &Hashlist{Files: texts(files)}
}

// nameKey reads a name and remembers where it stands.
func (d *decoder) nameKey(dst *located) key {
	return key{name: "name", read: func(name string, n *node) {
		dst.at = n.at
		d.text(&dst.text, checkName)(name, n)
	}}
}

// required notes that the mapping n, called what, lacks the key name.
func (d *decoder) required(n *node, seen map[string]position, what, name string) {
	if _, ok := seen[name]; !ok && n.kind == kindMapping {
		d.add(n.at, "add "+name+": ...", "%s needs %q", what, name)
	}
}
