package guard

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/kerneltest"
)

// changerVariable makes a test binary a changer; see TestMain.
const changerVariable = "ASSAY_TEST_CHANGER"

// A changer is a process of the container that changes files when told to. What it
// has open or mapped it keeps until it drops it.
type changer struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// newChanger starts a changer in the container's mount namespace, or with nil in ours.
func newChanger(t *testing.T, c *kerneltest.Container) *changer {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	if c != nil {
		cmd = c.Command(t, exe)
	}
	cmd.Env = append(os.Environ(), changerVariable+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // it was killed with the test's context
	})
	return &changer{in: in, out: bufio.NewReader(out)}
}

// do has the changer take a step, and reports whether the filesystem can do that.
func (c *changer) do(t *testing.T, step ...string) (supported bool) {
	t.Helper()
	replies := make(chan string, 1)
	go func() {
		_, err := fmt.Fprintln(c.in, strings.Join(step, "\t"))
		reply, readErr := c.out.ReadString('\n')
		if err := errors.Join(err, readErr); err != nil {
			reply = err.Error()
		}
		replies <- strings.TrimSpace(reply)
	}()
	switch reply := receive(t, "the changer to "+strings.Join(step, " "), replies); reply {
	case "ok":
		return true
	case "unsupported":
		return false
	default:
		t.Fatalf("the changer, %v: %s", step, reply)
		return false
	}
}

// serveChanges is the changer's main. Its steps: "prepare CHANGE PATH", "act", "drop".
func serveChanges(in io.Reader, out io.Writer) error {
	h, act := new(hand), func() {}
	defer h.drop()
	all := changes()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		step := strings.Split(lines.Text(), "\t")
		reply := try(func() {
			switch step[0] {
			case "prepare":
				h.path = step[2]
				act = all[step[1]](h)
			case "act":
				act()
			case "drop":
				h.drop()
			}
		})
		if _, err := fmt.Fprintln(out, reply); err != nil {
			return err
		}
	}
	return lines.Err()
}

// try runs a step and says how it ended. Steps panic with what the kernel refused.
func try(step func()) (reply string) {
	defer func() {
		switch failed := recover().(type) {
		case nil:
		case error:
			reply = strings.ReplaceAll(failed.Error(), "\n", "; ")
			if errors.Is(failed, unix.EOPNOTSUPP) || errors.Is(failed, unix.ENOSYS) {
				reply = "unsupported"
			}
		default:
			panic(failed)
		}
	}()
	step()
	return "ok"
}

// check panics with an error, for try.
func check(errs ...error) {
	if err := errors.Join(errs...); err != nil {
		panic(err)
	}
}

// A hand is what a changer works with: a file, and what it holds of it.
type hand struct {
	path string
	fds  []int
	maps [][]byte
}

// other is a path next to the file.
func (h *hand) other() string { return h.path + ".other" }

func (h *hand) open(path string, flags int) int {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o755)
	check(err)
	h.fds = append(h.fds, fd)
	return fd
}

// mapping maps the file for writing and closes the descriptor, if it is not to keep it.
func (h *hand) mapping(prot int, keep bool) []byte {
	fd := h.open(h.path, unix.O_RDWR)
	m, err := unix.Mmap(fd, 0, len(goodContent()), prot, unix.MAP_SHARED)
	check(err)
	h.maps = append(h.maps, m)
	if !keep {
		h.close()
	}
	return m
}

// made makes a file with bad content.
func (h *hand) made(path string) {
	fd := h.open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	h.write(fd, badContent())
	h.close()
}

func (h *hand) write(fd int, content []byte) {
	n, err := unix.Write(fd, content)
	check(err, whole(n, len(content)))
}

// whole is an error if not all was written.
func whole(n, want int) error {
	if n != want {
		return fmt.Errorf("%d of %d bytes", n, want)
	}
	return nil
}

// close closes all descriptors.
func (h *hand) close() {
	for _, fd := range h.fds {
		check(unix.Close(fd))
	}
	h.fds = nil
}

// drop gives up all.
func (h *hand) drop() {
	h.close()
	for _, m := range h.maps {
		check(unix.Munmap(m))
	}
	h.maps = nil
}
