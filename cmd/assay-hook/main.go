// Command assay-hook is the OCI hook that makes a container wait until the
// Assay agent guards it. A container runtime starts it; `assay-hook --help`
// says how to make it do so.
//
// It owns flags, messages and exit codes; package hook does the work.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/assay-project/assay/hook"
)

// Exit codes. Runtimes only tell zero from the rest.
const (
	exitOK      = 0 // the container is guarded, exempt, or allowed to start without an agent
	exitStopped = 1 // the container must not start
	exitUsage   = 2 // wrong arguments or stage: the container must not start either
)

// systemLog is where syslog(3) sends messages.
const systemLog = "/dev/log"

// maxMessage bounds a message on stderr, in bytes: runtimes copy it into theirs.
const maxMessage = 2048

// version is set by the linker (-X main.version=…).
var version = "(unknown)"

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

type options struct {
	hook.Options
	missingAllowed bool
}

func run(args []string, stdin io.Reader, stdout io.Writer, stderr *os.File) int {
	opts, err := parseArgs(args, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		report(stderr, systemLog, fmt.Sprintf("%v; see assay-hook --help", err))
		return exitUsage
	}
	id, err := hook.Guard(stdin, &opts.Options)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, hook.ErrWithoutAgent):
		report(stderr, systemLog, about(id)+err.Error())
		return exitOK
	case errors.Is(err, hook.ErrAgentMissing) && opts.missingAllowed:
		report(stderr, systemLog, about(id)+"WARNING: it starts unguarded, as --on-agent-missing=allow says: "+err.Error())
		return exitOK
	default:
		report(stderr, systemLog, about(id)+err.Error())
		return exitStopped
	}
}

// parseArgs returns flag.ErrHelp when there is nothing left to do.
func parseArgs(args []string, stdout io.Writer) (*options, error) {
	opts := new(options)
	flags := flag.NewFlagSet("assay-hook", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&opts.Socket, "socket", hook.DefaultSocket, "")
	flags.StringVar(&opts.Namespace, "namespace", "", "")
	flags.DurationVar(&opts.Timeout, "timeout", hook.DefaultTimeout, "")
	flags.DurationVar(&opts.Wait, "wait", hook.DefaultWait, "")
	runtime := flags.String("runtime", "", "")
	flags.Func("exempt-namespace", "", func(name string) error {
		opts.Exempt = append(opts.Exempt, name)
		return nil
	})
	missing := flags.String("on-agent-missing", "fail", "")
	showVersion := flags.Bool("version", false, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, help)
		return nil, flag.ErrHelp
	case err != nil:
		return nil, err
	case *showVersion:
		fmt.Fprintln(stdout, "assay-hook", version)
		return nil, flag.ErrHelp
	}
	if err := opts.setRuntime(*runtime); err != nil {
		return nil, err
	}
	opts.missingAllowed = *missing == "allow"
	if *missing != "allow" && *missing != "fail" {
		return nil, fmt.Errorf("--on-agent-missing is %q: it must be fail or allow", *missing)
	}
	if opts.Timeout <= 0 {
		return nil, fmt.Errorf("--timeout is %v: it must be more than zero", opts.Timeout)
	}
	if opts.Wait < 0 {
		return nil, fmt.Errorf("--wait is %v: it must not be negative", opts.Wait)
	}
	if !filepath.IsAbs(opts.Socket) || len(opts.Socket) > hook.MaxSocket {
		return nil, fmt.Errorf("--socket is %q: it must be an absolute path of at most %d bytes", opts.Socket, hook.MaxSocket)
	}
	if flags.NArg() != 1 {
		return nil, fmt.Errorf("one STAGE is needed after the flags, not %d arguments", flags.NArg())
	}
	opts.Stage, err = hook.ParseStage(flags.Arg(0))
	return opts, err
}

// setRuntime takes --runtime, and checks the flags that go with it or do not.
func (o *options) setRuntime(name string) (err error) {
	switch {
	case name == "" && len(o.Exempt) > 0:
		return errors.New("--exempt-namespace needs --runtime: nothing else says what a container's namespace is")
	case name == "":
		return nil
	case o.Namespace != "":
		return errors.New("--namespace and --runtime exclude each other: one of them says what the namespace is")
	case slices.Contains(o.Exempt, ""):
		return errors.New("--exempt-namespace needs the name of a namespace")
	}
	o.Runtime, err = hook.ParseRuntime(name)
	return err
}

// about names the container, if it is known, for a message.
func about(id string) string {
	if id == "" {
		return ""
	}
	return "container " + id + ": "
}

// report prints one line on stderr. Parts of it come from the state and the
// agent, so that nothing in it may control a terminal. Some runtimes (crun) run
// hooks with stderr on /dev/null; what they would lose goes to the system log.
func report(stderr *os.File, systemLog, message string) {
	line := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, message)
	if len(line) > maxMessage {
		line = strings.ToValidUTF8(line[:maxMessage], "") + "…"
	}
	if isNull(stderr) {
		// Without a system log there is nobody left to tell.
		_ = hook.Syslog(systemLog, "assay-hook", os.Getpid(), line)
		return
	}
	fmt.Fprintln(stderr, "assay-hook:", line)
}

func isNull(f *os.File) bool {
	const null = 1<<8 | 3 // device 1:3 (null(4))
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Rdev == null
}
