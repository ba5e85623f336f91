package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/keeper"
)

// The flags of release.
const (
	flagAll          = "all"
	flagYes          = "yes"
	flagKeeperSocket = "keeper-socket"
)

// The programs that are ended by their names.
const (
	agentProgram  = "assayd"
	keeperProgram = "assay-keeper"
)

// dialPatience is how long the keeper may take to be connected to.
const dialPatience = 2 * time.Second

// releasePatience is how long the agent may take to release a container, with all its
// filesystems.
const releasePatience = 30 * time.Second

func (p *program) releaseCommand() *cli.Command {
	return &cli.Command{
		Name:  "release",
		Usage: "let containers go on unguarded: the way out of a node that hangs",
		Description: `Ends the guard of all containers of this node (--all), or of one (--container).
What runs goes on without a gate: nothing that it opens is scanned any more.

--all is for a node whose openers hang because the agent, the keeper or both do
not answer. It needs neither: the agent is killed, the keeper gives up everything
that it holds or is killed too, and openers that wait are allowed. Whoever
supervises the agent (systemd) starts it again; then new containers are guarded,
and those that were released are not, until they are restarted. With
"keeper.backend: systemd", which holds containers itself, use
"systemctl stop assayd" instead.

--container asks the agent. Openers that wait are answered by the tenant's onError.

Exits with 0 when done, 1 if a process cannot be ended, 2 if something is wrong
with the command line or there is no such container, 3 if nobody is there.

Examples:
  assay release --all               asks first
  assay release --all --yes         does not ask
  assay release --container web
  assay release --container 3f2a9b --yes -o json`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: flagAll, DisableDefaultText: true, Usage: "release every container of this node, and kill the agent"},
			&cli.StringFlag{Name: flagContainer, Usage: "release the container with this `NAME`, id or beginning of its id"},
			&cli.BoolFlag{Name: flagYes, Aliases: []string{"y"}, DisableDefaultText: true, Usage: "do not ask"},
			&cli.StringFlag{
				Name: flagKeeperSocket, Usage: "`PATH` of the keeper's socket, with --all",
				DefaultText: "keeper.sock beside the agent's socket",
			},
		},
		Action: p.release,
	}
}

// errDeclined ends a release that the operator did not confirm.
var errDeclined = &failure{code: exitUsage, err: errors.New("nothing was released")}

func (p *program) release(c *cli.Context) error {
	if _, err := operands(c, "", 0, 0); err != nil {
		return err
	}
	container, all := c.String(flagContainer), c.Bool(flagAll)
	switch {
	case all == (container != ""):
		return usage("use --all for the whole node, or --container NAME for one", "%q needs either --all or --container", c.Command.HelpName)
	case !all && c.IsSet(flagKeeperSocket):
		return usage("leave it out: the agent is asked", "--keeper-socket makes no sense with --container")
	}
	if all {
		return p.releaseAll(c)
	}
	if err := p.confirm(c, "Container "+container+" will run unguarded."); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, releasePatience)
	defer cancel()
	released, err := newAgent(c).release(ctx, container)
	if errors.Is(err, context.DeadlineExceeded) {
		return &failure{
			code: exitUnreachable, err: fmt.Errorf("the agent has not answered within %v", releasePatience),
			remedy: "if openers hang too, let everything go on: assay release --all",
		}
	}
	if err != nil {
		return err
	}
	if asJSON(c) {
		return p.printJSON(released)
	}
	_, err = fmt.Fprintf(p.stdout, "Container %s of tenant %s runs unguarded now (pid %d). Restart it to have it guarded again.\n",
		printable(cmp.Or(released.Name, released.ID)), printable(released.Tenant), released.PID)
	return err
}

// confirm asks the operator, unless --yes was given.
func (p *program) confirm(c *cli.Context, what string) error {
	if c.Bool(flagYes) {
		return nil
	}
	if !isTerminal(p.stdin) {
		return usage("say so with --yes", "%s Standard input is no terminal to ask on", what)
	}
	_, _ = fmt.Fprintf(p.stderr, "%s Go on? [y/N] ", printable(what))
	answer, err := bufio.NewReader(p.stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	if err != nil {
		return errors.Join(errDeclined, err)
	}
	return errDeclined
}

// What became of the agent or the keeper.
const (
	outcomeAbsent   = "absent"   // there was none
	outcomeKilled   = "killed"   // by us, or by the keeper
	outcomeReleased = "released" // the keeper: it gave everything up, and goes on
)

// A releaseDocument is the output of "assay release --all -o json".
type releaseDocument struct {
	Unguarded  int      `json:"unguarded"`  // containers that run without a gate from now on
	Containers []string `json:"containers"` // ids of those that were guarded, as far as the agent has listed them
	Agent      ending   `json:"agent"`
	Keeper     ending   `json:"keeper"`
}

// An ending is what became of a process.
type ending struct {
	Outcome string `json:"outcome"` // absent, killed, released
	PID     int    `json:"pid,omitempty"`
}

func (p *program) releaseAll(c *cli.Context) error {
	if err := p.confirm(c, "The agent will be killed, and every container of this node will run unguarded."); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return usage("run it as root: sudo assay release --all", "only root can release containers")
	}
	socket := c.String(flagSocket)
	r := &release{
		roster: filepath.Join(filepath.Dir(socket), "guarded"),
		keeper: cmp.Or(c.String(flagKeeperSocket), filepath.Join(filepath.Dir(socket), "keeper.sock")),
		lock:   socket + ".lock",
	}
	doc, err := r.all(c.Context)
	if err != nil {
		return err
	}
	if doc.Agent.Outcome == outcomeAbsent && doc.Keeper.Outcome == outcomeAbsent && len(doc.Containers) == 0 {
		return &failure{
			code:   exitUnreachable,
			err:    fmt.Errorf("there is neither an agent at %s nor a keeper at %s: nothing to release", socket, r.keeper),
			remedy: "name the sockets with --socket and --keeper-socket if they are elsewhere",
		}
	}
	if asJSON(c) {
		return p.printJSON(doc)
	}
	return p.printRelease(doc)
}

// A release is one of all containers under way.
type release struct {
	roster string // directory with the agent's list of guarded containers
	keeper string // socket
	lock   string // the agent's
}

// all releases everything. Nothing here may wait for an agent or a keeper that is stuck.
func (r *release) all(ctx context.Context) (*releaseDocument, error) {
	agent, err := holderOf(r.lock, agentProgram)
	if err != nil {
		return nil, err
	}
	defer agent.close()
	hung, err := holderOf(r.keeper+".lock", keeperProgram)
	if err != nil {
		return nil, err
	}
	defer hung.close()
	doc := &releaseDocument{Agent: ending{Outcome: outcomeAbsent}, Keeper: ending{Outcome: outcomeAbsent}}
	// First of all: the next agent guards again whom it finds on the list.
	if doc.Containers, err = emptyRoster(r.roster); err != nil {
		return nil, &failure{code: exitFinding, err: fmt.Errorf("the list of guarded containers cannot be emptied: %w", err), remedy: "empty " + r.roster}
	}
	doc.Unguarded = len(doc.Containers)
	if n, pid, err := askRelease(ctx, r.keeper); err == nil {
		doc.Unguarded, doc.Keeper = n, ending{outcomeReleased, pid}
		hung = nil
	}
	// The agent before the keeper: while it lives it would find itself another one.
	if agent != nil {
		if err := agent.kill(); err != nil {
			return nil, err
		}
		doc.Agent = ending{outcomeKilled, agent.pid}
	}
	if hung != nil {
		if err := hung.kill(); err != nil {
			return nil, err
		}
		doc.Keeper = ending{outcomeKilled, hung.pid}
	}
	return doc, nil
}

// askRelease has the keeper release everything, and returns how many containers those
// were and the keeper's pid. It fails for a keeper that does not answer.
func askRelease(ctx context.Context, socket string) (n, pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	k, err := keeper.Dial(ctx, socket)
	if err != nil {
		return 0, 0, err
	}
	defer k.Close()
	if _, err := k.Status(); err != nil { // a question with a short patience, before a long one
		return 0, 0, err
	}
	n, err = k.Release()
	return n, k.PID(), err
}

// emptyRoster removes the files of guarded containers, and returns their ids.
func emptyRoster(dir string) ([]string, error) {
	ids := []string{}
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return ids, nil
	}
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		path := filepath.Join(dir, f.Name())
		if id := listedID(path); id != "" {
			ids = append(ids, id)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
	}
	return ids, nil
}

// listedID returns the id of the container that a file of the roster is of, "" if it is
// of none: of a group that several share, or damaged.
func listedID(path string) string {
	var listed struct {
		State struct {
			Container struct {
				ID string `json:"id"`
			} `json:"container"`
		} `json:"state"`
	}
	text, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(text, &listed) != nil {
		return ""
	}
	return listed.State.Container.ID
}

// printRelease says what was done and what that means.
func (p *program) printRelease(doc *releaseDocument) error {
	var b strings.Builder
	switch doc.Keeper.Outcome {
	case outcomeReleased:
		fmt.Fprintf(&b, "The keeper (pid %d) has given up everything that it held.\n", doc.Keeper.PID)
	case outcomeKilled:
		fmt.Fprintf(&b, "The keeper (pid %d) did not answer, and was killed.\n", doc.Keeper.PID)
	default:
		b.WriteString("There was no keeper. If keeper.backend is systemd, it holds the containers: systemctl stop assayd\n")
	}
	if doc.Agent.Outcome == outcomeKilled {
		fmt.Fprintf(&b, "The agent (pid %d) was killed.\n", doc.Agent.PID)
	} else {
		b.WriteString("There was no agent.\n")
	}
	runs, what := "run", plural(doc.Unguarded, "container")
	if doc.Unguarded == 1 {
		runs = "runs"
	}
	fmt.Fprintf(&b, "%s %s unguarded now, and what waited was allowed: restart what you do not trust.\n", what, runs)
	b.WriteString("New containers are guarded as soon as the agent is back: systemctl status assayd, assay status\n")
	_, err := fmt.Fprint(p.stdout, b.String())
	return err
}
