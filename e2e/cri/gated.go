package cri

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-project/assay/e2e/harness"
)

// PluginName is how containerd calls the agent's plugin.
const PluginName = "10-assay"

// StartGated starts a node and an agent for it with these lines of configuration, and
// waits until containerd has the agent's plugin.
func StartGated(tb testing.TB, suite *harness.Suite, o Options, config string) (*Node, *harness.Agent) {
	tb.Helper()
	n := Prepare(tb, suite, o)
	agent := suite.NewAgent(tb, n.AgentConfig()+config)
	n.BeginGated(tb, agent)
	return n, agent
}

// StartInstalled is StartGated on a node that is configured never to start anything
// unguarded, whatever becomes of the agent: the OCI hook is in the base specification of
// every container, and no container is created without the plugin. The plugin alone would
// not do: containerd takes one that crashes or stalls in CreateContainer for present, and
// creates the container without what it would have said (TestRequiredPluginIsNotEnough).
func StartInstalled(tb testing.TB, suite *harness.Suite, o Options, config string) (*Node, *harness.Agent) {
	tb.Helper()
	n := Prepare(tb, suite, o)
	agent := suite.NewAgent(tb, n.AgentConfig()+config)
	n.Install(tb, agent)
	n.BeginGated(tb, agent)
	return n, agent
}

// BeginGated starts a node that was prepared, and its agent.
func (n *Node) BeginGated(tb testing.TB, agent *harness.Agent) {
	tb.Helper()
	n.Begin(tb)
	agent.Begin(tb)
	n.AwaitPlugin(tb, 1)
}

// Install configures a node that has not started as an administrator does, so that the
// hook of an agent is in the base specification of every container, and the agent's plugin
// is a required one; more are further flags of assay install containerd.
func (n *Node) Install(tb testing.TB, agent *harness.Agent, more ...string) {
	tb.Helper()
	command(tb, n.suite.Bin("assay"), append([]string{
		"install", "containerd", "--edit", "--require-plugin",
		"--config", n.config, "--dir", filepath.Join(n.dir, "conf.d"), "--socket", agent.Socket,
		"--containerd", filepath.Join(n.bin, "containerd"), "--hook", n.suite.Bin("assay-hook"),
	}, more...)...)
}

const (
	// AgentNamespace is the namespace of the agent's own pod, whose containers start
	// while there is no agent.
	AgentNamespace = "assay-system"
	// Tolerate is the annotation of pods that are created without the required plugin.
	Tolerate = "tolerate-missing-plugin.assay"
)

// AwaitPlugin waits until containerd has had the agent's plugin so many times since the
// node began: it is called from then on.
func (n *Node) AwaitPlugin(tb testing.TB, times int) {
	tb.Helper()
	harness.Eventually(tb, "containerd has the agent's plugin", func() error {
		if now := n.Plugged(tb); now < times {
			return fmt.Errorf("it has had it %d times, want %d", now, times)
		}
		return nil
	})
}

// Plugged returns how often containerd has had the agent's plugin since the node began.
func (n *Node) Plugged(tb testing.TB) int {
	tb.Helper()
	return strings.Count(n.Log(tb), PluginName+`\" connected and synchronized`)
}

// Guards reports whether the agent says that it guards a container.
func Guards(tb testing.TB, agent *harness.Agent, id string) bool {
	tb.Helper()
	for _, c := range agent.Status(tb).Containers {
		if c.ID == id {
			return len(c.Marks) > 0
		}
	}
	return false
}
