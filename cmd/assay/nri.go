package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/api"
)

// flagWait names how long a missing agent is waited for.
const flagWait = "wait"

// launchAgain is the pause between two attempts to reach the agent.
const launchAgain = 100 * time.Millisecond

func (p *program) nriLaunchCommand() *cli.Command {
	return &cli.Command{
		Name:  "nri-launch",
		Usage: "what a container runtime starts as its NRI plugin: hands the connection to the agent",
		Description: `For containerd and CRI-O, not for people: "assay install containerd --pre-installed"
puts a launcher with this command among the runtime's NRI plugins. The runtime
then starts it before its first container, with a connection in ` + api.NRIVariable + `,
which goes to the agent. It ends when that connection does.

If there is no agent within --wait, it ends with 3. The runtime then goes on
without the plugin, and the agent connects by itself when it is there.

Examples:
  assay nri-launch --help
  exec assay nri-launch --socket /run/assay/agent.sock    in /opt/nri/plugins/10-assay`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: flagWait, Value: 3 * time.Second, Usage: "wait `TIME` for an agent that is not there; the runtime waits 5s by default for all of this"},
		},
		Action: p.nriLaunch,
	}
}

func (p *program) nriLaunch(c *cli.Context) error {
	if _, err := operands(c, "nothing", 0, 0); err != nil {
		return err
	}
	conn, err := runtimeConn(os.Getenv(api.NRIVariable))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return handToAgent(ctx, api.NewClient(c.String(flagSocket)), conn, time.Now().Add(c.Duration(flagWait)))
}

// runtimeConn returns the connection that the runtime has named.
func runtimeConn(named string) (*os.File, error) {
	if named == "" {
		return nil, usage("it is for container runtimes; see assay help nri-launch", "%s is not set", api.NRIVariable)
	}
	fd, err := strconv.Atoi(named)
	if err == nil && fd < 0 {
		err = strconv.ErrRange
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	}
	if err != nil {
		return nil, usage("it is for container runtimes; see assay help nri-launch", "%s=%q is no descriptor: %v", api.NRIVariable, named, err)
	}
	return os.NewFile(uintptr(fd), "the runtime's connection"), nil
}

// handToAgent gives the connection to the agent, as soon as there is one, and waits for
// its end.
func handToAgent(ctx context.Context, agent *api.Client, conn *os.File, until time.Time) error {
	for {
		err := agentFailure(agent.ServeNRI(ctx, conn))
		// An agent that has had it may have used it: another one could not go on with it.
		if !nobodyListens(err) || time.Until(until) <= 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(launchAgain):
		}
	}
}

// nobodyListens reports whether nothing was sent, because there is no agent.
func nobodyListens(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

// nriSummary is the connection to the container runtime in a line.
func (p *program) nriSummary(n *api.NRIStatus) cell {
	if n.Mode == api.NRIOff {
		return cell{text: "NRI off"}
	}
	line := cell{}
	var parts []string
	if n.Connected {
		parts = append(parts, fmt.Sprintf("%s %s, NRI %s, %s, for %s", n.Runtime, n.RuntimeVersion, n.NRIVersion, n.Connection, p.since(n.Since)))
	} else {
		parts = append(parts, "not connected to NRI")
		if n.Error != "" {
			parts = append(parts, n.Error)
		}
		if n.Mode == api.NRIOn || n.Connections > 0 {
			line.style = red
		}
	}
	for _, c := range []struct {
		count uint64
		what  string
		style style
	}{
		{uint64(n.Running.Containers), "ran before", plain},             //nolint:gosec // a count
		{uint64(n.Running.UnderWay), "of them not guarded yet", yellow}, //nolint:gosec // a count
		{uint64(n.Running.Failed), "of them run unguarded", red},        //nolint:gosec // a count
		{n.Hooked, "got the hook", plain},
		{n.Refused, "refused", plain},
		{n.Open, "started unguarded", red},
		{n.Panics, "panics caught", red},
	} {
		if c.count == 0 {
			continue
		}
		parts = append(parts, fmt.Sprintf("%d %s", c.count, c.what))
		if c.style != plain {
			line.style = c.style
		}
	}
	line.text = strings.Join(parts, ", ")
	return line
}
