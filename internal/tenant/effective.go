package tenant

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// The view types below give the configuration the file's own key names. Encoded
// as JSON, which is YAML, a view is a configuration file that means the same.
type (
	configView struct {
		Socket   string        `json:"socket"`
		State    string        `json:"state"`
		Scanners []scannerView `json:"scanners"`
		Tenants  []tenantView  `json:"tenants"`
		Cache    cacheView     `json:"cache"`
		Keeper   keeperView    `json:"keeper"`
		Records  *recordsView  `json:"records,omitempty"`
		Exempt   []matchView   `json:"exempt"`

		Trust      trustView       `json:"trust"`
		Namespaces []namespaceView `json:"namespaces"`
		Containerd containerdView  `json:"containerd"`
		NRI        nriView         `json:"nri"`
	}
	scannerView struct {
		Name     string        `json:"name"`
		Clamd    *clamdView    `json:"clamd,omitempty"`
		Hashlist *hashlistView `json:"hashlist,omitempty"`
	}
	clamdView struct {
		Address     string `json:"address"`
		Connections int    `json:"connections"`
		MaxFileSize int64  `json:"maxFileSize"`
	}
	hashlistView struct {
		Files []string `json:"files"`
	}
	matchView struct {
		Namespaces      []string          `json:"namespaces,omitempty"`
		NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"`
		PodLabels       map[string]string `json:"podLabels,omitempty"`
	}
	tenantView struct {
		Name          string          `json:"name"`
		Match         matchView       `json:"match"`
		Mode          Mode            `json:"mode"`
		On            []string        `json:"on"`
		Stages        []stageView     `json:"stages"`
		Deadline      string          `json:"deadline"`
		OnError       Action          `json:"onError"`
		OnTimeout     Action          `json:"onTimeout"`
		OnUnscannable Action          `json:"onUnscannable"`
		OnTooLarge    Action          `json:"onTooLarge"`
		MaxSize       int64           `json:"maxSize"`
		KernelMarks   KernelMarks     `json:"kernelMarks"`
		VolumeMarks   VolumeMarks     `json:"volumeMarks"`
		ScanAhead     ScanAhead       `json:"scanAhead"`
		OnGeneration  OnNewGeneration `json:"onNewGeneration"`
		Grace         string          `json:"grace"`
		OnAgentGone   Action          `json:"onAgentGone"`
		OnUnguarded   Action          `json:"onUnguarded"`
		Exclude       excludeView     `json:"exclude"`
	}
	stageView struct {
		Scanners []string `json:"scanners"`
		Decide   any      `json:"decide"` // "all", "any" or a quorumView
	}
	quorumView struct {
		Quorum int `json:"quorum"`
	}
	excludeView struct {
		Mounts []string `json:"mounts"`
	}
	cacheView struct {
		Memory int64 `json:"memory"`
		Disk   int64 `json:"disk"`
	}
	keeperView struct {
		Backend KeeperBackend `json:"backend"`
		Socket  string        `json:"socket"`
	}
	// Without a file, what is said of it is left out.
	recordsView struct {
		File    string   `json:"file,omitempty"`
		MaxSize int64    `json:"maxSize,omitempty"`
		Keep    int      `json:"keep,omitempty"`
		Labels  []string `json:"labels"`
	}
	trustView struct {
		PodLabels []string `json:"podLabels"`
	}
	namespaceView struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	}
	containerdView struct {
		Socket    string `json:"socket"`
		Namespace string `json:"namespace"`
	}
	nriView struct {
		Mode   NRIMode `json:"mode"`
		Socket string  `json:"socket"`
		Index  string  `json:"index"`
		Hook   string  `json:"hook,omitempty"`
	}
)

// Effective returns the configuration in force, defaults filled in, as a value
// to encode as JSON: the file's own keys, sizes in bytes, durations as in 5s.
// The encoding is itself a valid configuration file that means the same. No key
// holds a secret, so nothing is left out.
func (c *Config) Effective() any { return c.view() }

// Hash returns 16 hexadecimal digits that are equal for configurations that
// mean the same, however they are written.
func (c *Config) Hash() string {
	sum := sha256.New()
	if err := json.NewEncoder(sum).Encode(c.view()); err != nil {
		// Only strings and integers are encoded, into a hash: neither can fail.
		panic(fmt.Sprintf("tenant: encoding the configuration: %v", err))
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// Hash returns digits that are equal for scanners whose verdicts are worth the same:
// their driver and what it asks, not how.
func (s Scanner) Hash() string {
	v := s.view()
	v.Name = ""
	if v.Clamd != nil {
		v.Clamd.Connections = 0
	}
	sum := sha256.New()
	if err := json.NewEncoder(sum).Encode(v); err != nil {
		panic(fmt.Sprintf("tenant: encoding a scanner: %v", err)) // see Config.Hash
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// RestartNeeded returns the top-level keys, socket, state, cache, keeper, records,
// containerd and nri in this order, whose change from c to next a running agent
// cannot apply. It is empty if a reload can apply everything, records.labels
// included.
func (c *Config) RestartNeeded(next *Config) []string {
	var keys []string
	if c.Socket != next.Socket {
		keys = append(keys, "socket")
	}
	if c.State != next.State {
		keys = append(keys, "state")
	}
	if c.Cache != next.Cache {
		keys = append(keys, "cache")
	}
	if c.Keeper != next.Keeper {
		keys = append(keys, "keeper")
	}
	if c.Records != next.Records {
		keys = append(keys, "records")
	}
	if c.Containerd != next.Containerd {
		keys = append(keys, "containerd")
	}
	if c.NRI != next.NRI {
		keys = append(keys, "nri")
	}
	return keys
}

func (c *Config) view() configView {
	v := configView{
		Socket: c.Socket, State: c.State, Cache: cacheView(c.Cache), Keeper: keeperView(c.Keeper),
		Trust: trustView(c.Trust), Containerd: containerdView(c.Containerd), NRI: nriView(c.NRI),
	}
	v.Scanners = each(c.Scanners, Scanner.view)
	v.Tenants = each(c.Tenants, Tenant.view)
	v.Exempt = each(c.Exempt, func(m Match) matchView { return matchView(m) })
	v.Namespaces = each(c.Namespaces, func(n Namespace) namespaceView { return namespaceView(n) })
	v.Records = c.recordsView()
	return v
}

// recordsView returns nil if there is neither a file nor a label.
func (c *Config) recordsView() *recordsView {
	if c.Records.File == "" && len(c.RecordLabels) == 0 {
		return nil
	}
	v := &recordsView{File: c.Records.File, Labels: each(c.RecordLabels, func(key string) string { return key })}
	if c.Records.File != "" {
		v.MaxSize, v.Keep = c.Records.MaxSize, c.Records.Keep
	}
	return v
}

func (s Scanner) view() scannerView {
	v := scannerView{Name: s.Name}
	if s.Clamd != nil {
		v.Clamd = &clamdView{Address: s.Clamd.Address, Connections: s.Clamd.Connections, MaxFileSize: s.Clamd.MaxFileSize}
	}
	if s.Hashlist != nil {
		v.Hashlist = &hashlistView{Files: s.Hashlist.Files}
	}
	return v
}

func (t Tenant) view() tenantView {
	return tenantView{
		Name: t.Name, Match: matchView(t.Match), Mode: t.Mode, On: t.on(),
		Stages: each(t.Stages, Stage.view), Deadline: t.Deadline.String(),
		OnError: t.OnError, OnTimeout: t.OnTimeout, OnUnscannable: t.OnUnscannable, OnTooLarge: t.OnTooLarge,
		MaxSize: t.MaxSize, KernelMarks: t.KernelMarks, VolumeMarks: t.VolumeMarks,
		ScanAhead: t.ScanAhead, OnGeneration: t.OnGeneration,
		Grace: t.Grace.String(), OnAgentGone: t.OnAgentGone, OnUnguarded: t.OnUnguarded,
		Exclude: excludeView{Mounts: t.ExcludeMounts},
	}
}

// on returns the operations that are scanned, as in the file.
func (t Tenant) on() []string {
	ops := []string{}
	if t.OnOpen {
		ops = append(ops, "open")
	}
	if t.OnExec {
		ops = append(ops, "exec")
	}
	return ops
}

func (s Stage) view() stageView {
	v := stageView{Scanners: s.Scanners}
	switch s.Quorum {
	case 0:
		v.Decide = "all"
	case 1:
		v.Decide = "any"
	default:
		v.Decide = quorumView{s.Quorum}
	}
	return v
}

// each returns f of every element, never nil.
func each[T, V any](list []T, f func(T) V) []V {
	out := make([]V, len(list))
	for i, e := range list {
		out[i] = f(e)
	}
	return out
}
