package doctor

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A process is what /proc says about the rights and limits of one process.
type process struct {
	name  string // for people: "the agent (pid 12)" or "this process"
	euid  int
	caps  uint64 // effective capabilities, one bit each
	files uint64 // hard limit of open files; math.MaxUint64 means none
	// init says that the process is in the initial user namespace, the only one
	// whose capabilities count for fanotify.
	init bool
}

// root reports whether the process has root's identity; its capabilities may
// still be cut down.
func (p *process) root() bool { return p.euid == 0 }

// can reports whether the process has the capability with this number.
func (p *process) can(capability int) bool { return p.caps&(1<<capability) != 0 }

// readProcess reads the process directory dir, such as /proc/self.
func readProcess(dir, name string) (*process, error) {
	p := &process{name: name}
	status, err := readFields(filepath.Join(dir, "status"), ":")
	if err != nil {
		return nil, err
	}
	if p.caps, err = strconv.ParseUint(status["CapEff"], 16, 64); err != nil {
		return nil, fmt.Errorf("%s/status: effective capabilities: %w", dir, err)
	}
	uids := strings.Fields(status["Uid"]) // real, effective, saved, file system
	if len(uids) < 2 {
		return nil, fmt.Errorf("%s/status: no user ids in %q", dir, status["Uid"])
	}
	if p.euid, err = strconv.Atoi(uids[1]); err != nil {
		return nil, fmt.Errorf("%s/status: effective user id: %w", dir, err)
	}
	limits, err := readFields(filepath.Join(dir, "limits"), "Max open files")
	if err != nil {
		return nil, err
	}
	if p.files, err = hardLimit(limits[""]); err != nil {
		return nil, fmt.Errorf("%s/limits: open files: %w", dir, err)
	}
	uidMap, err := os.ReadFile(filepath.Join(dir, "uid_map"))
	if err != nil {
		return nil, err
	}
	p.init = strings.Join(strings.Fields(string(uidMap)), " ") == "0 0 4294967295"
	return p, nil
}

// readFields reads lines of the form "key<separator>value"; lines without the
// separator are left out.
func readFields(path, separator string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	fields := make(map[string]string)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), separator); ok {
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields, lines.Err()
}

// hardLimit returns the second number of a line of /proc/PID/limits.
func hardLimit(line string) (uint64, error) {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return 0, fmt.Errorf("no hard limit in %q", line)
	}
	if fields[1] == "unlimited" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(fields[1], 10, 64)
}

// A capability is a right that the agent cannot do without.
type capability struct {
	number  int
	name    string
	purpose string
}

// capabilities returns what the agent needs to be allowed to do.
func capabilities() []capability {
	return []capability{
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "permission events and marks on file systems (fanotify)"},
		{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "reaching a container's files through /proc/PID/root"},
		{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "reading files whatever their owner and mode"},
	}
}

// privileges checks what p is allowed to do. isAgent says that p is the agent
// itself, whose lack of a right is final; somebody without root who runs the
// doctor proves nothing.
func privileges(p *process, isAgent bool) []Check {
	if !isAgent && !p.root() {
		return []Check{{
			Area: AreaPrivileges, Name: "capabilities", Status: Unknown,
			Detail: fmt.Sprintf("%s runs as uid %d, the agent would run as root", p.name, p.euid),
			Remedy: runAsRoot,
		}}
	}
	checks := []Check{userNamespace(p)}
	for _, c := range capabilities() {
		check := Check{Area: AreaPrivileges, Name: c.name, Status: OK, Detail: "for " + c.purpose}
		if !p.can(c.number) {
			check.Status = Fail
			check.Detail = fmt.Sprintf("%s lacks it; it is needed for %s", p.name, c.purpose)
			check.Remedy = fmt.Sprintf("give it to the agent: CapabilityBoundingSet= of its systemd unit, or --cap-add %s of its container",
				strings.TrimPrefix(c.name, "CAP_"))
		}
		checks = append(checks, check)
	}
	return checks
}

// userNamespace checks that p's capabilities are the host's.
func userNamespace(p *process) Check {
	if p.init {
		return Check{Area: AreaPrivileges, Name: "user namespace", Status: OK, Detail: p.name + " is in the host's"}
	}
	return Check{
		Area: AreaPrivileges, Name: "user namespace", Status: Fail,
		Detail: p.name + " is in a user namespace of its own, where the kernel gives no permission events",
		Remedy: "run the agent as root of the host: no userns-remap, no rootless container",
	}
}
