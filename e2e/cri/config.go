package cri

import (
	"fmt"
	"path/filepath"
	"strings"
)

// configuration returns containerd's configuration. Version 3 is what containerd 2.0 has
// brought, and what all since then take.
func (n *Node) configuration() string {
	var b strings.Builder
	at := func(name string) string { return filepath.Join(n.dir, name) }
	fmt.Fprintf(&b, "version = 3\nroot = %q\nstate = %q\n", at("root"), at("state"))
	fmt.Fprintf(&b, "[grpc]\n  address = %q\n[ttrpc]\n  address = %q\n[debug]\n  level = \"debug\"\n", n.Socket, n.Socket+".ttrpc")
	fmt.Fprintf(&b, "[plugins.'io.containerd.internal.v1.opt']\n  path = %q\n", at("opt"))
	fmt.Fprintf(&b, "[plugins.'io.containerd.cri.v1.images']\n  snapshotter = %q\n", n.snapshotter())
	fmt.Fprintf(&b, "  [plugins.'io.containerd.cri.v1.images'.pinned_images]\n    sandbox = %q\n", pauseImage)
	n.configureRuntime(&b, at)
	n.configureNRI(&b, at)
	return b.String()
}

func (n *Node) snapshotter() string {
	if n.options.Snapshotter == "" {
		return "overlayfs"
	}
	return n.options.Snapshotter
}

// configureRuntime writes what starts containers. Without CAP_SYS_RESOURCE the OOM score
// cannot be lowered. No pod has a network of its own, so there is no CNI either.
func (n *Node) configureRuntime(b *strings.Builder, at func(string) string) {
	const section = "plugins.'io.containerd.cri.v1.runtime'"
	fmt.Fprintf(b, "[%s]\n  restrict_oom_score_adj = true\n  disable_apparmor = true\n", section)
	fmt.Fprintf(b, "  [%s.cni]\n    conf_dir = %q\n", section, at("cni"))
	fmt.Fprintf(b, "  [%s.containerd.runtimes.runc]\n    runtime_type = \"io.containerd.runc.v2\"\n", section)
	fmt.Fprintf(b, "    runtime_path = %q\n", filepath.Join(n.bin, "containerd-shim-runc-v2"))
	fmt.Fprintf(b, "    pod_annotations = %s\n    container_annotations = %s\n", list(n.options.PassThrough), list(n.options.PassThrough))
	fmt.Fprintf(b, "    [%s.containerd.runtimes.runc.options]\n      BinaryName = \"runc\"\n      Root = %q\n", section, at("runc"))
}

func (n *Node) configureNRI(b *strings.Builder, at func(string) string) {
	const section = "plugins.'io.containerd.nri.v1.nri'"
	fmt.Fprintf(b, "[%s]\n  disable = false\n  socket_path = %q\n", section, n.NRISocket)
	fmt.Fprintf(b, "  plugin_path = %q\n  plugin_config_path = %q\n", at("nri-plugins"), at("nri-config"))
	if n.options.RequestTimeout != 0 {
		fmt.Fprintf(b, "  plugin_request_timeout = %q\n", n.options.RequestTimeout.String())
	}
	if len(n.options.Required) > 0 {
		fmt.Fprintf(b, "  [%s.default_validator]\n    enable = true\n    required_plugins = %s\n", section, list(n.options.Required))
	}
}

// list returns a TOML array of strings.
func list(items []string) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = fmt.Sprintf("%q", item)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// AgentConfig returns what the agent's configuration says of this node: where containerd
// and its NRI are, and how the plugin is called there, as 10-assay.
func (n *Node) AgentConfig(more ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "containerd: {socket: %s}\n", n.Socket)
	fmt.Fprintf(&b, "nri: {mode: \"on\", socket: %s, hook: %s}\n", n.NRISocket, n.suite.Bin("assay-hook"))
	for _, line := range more {
		fmt.Fprintln(&b, line)
	}
	return b.String()
}
