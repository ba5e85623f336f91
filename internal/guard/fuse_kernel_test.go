package guard

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/internal/audit"
	"github.com/assay-project/assay/internal/kerneltest"
	"github.com/assay-project/assay/internal/tenant"
	"github.com/assay-project/assay/scanner/scannertest"
)

// TestKernelHangingAttributes: a filesystem that opens a file and then does not
// say what it is like holds up neither the deadline nor the rest of the agent.
// The answers are counted: the first goes to the reader, the second to whoever
// describes the event.
func TestKernelHangingAttributes(t *testing.T) {
	for answers := range 3 {
		t.Run(fmt.Sprint(answers, " answers"), func(t *testing.T) {
			volume := t.TempDir()
			server := startFUSE(t, volume, answers)
			r := newRig(t, scannertest.NewFake("1", scannertest.Hang(nil)), config(func(p *tenant.Tenant) { p.Deadline = 50 * time.Millisecond }))
			c := kerneltest.NewContainer(t, map[string]string{"vol/x": "", "root": "content"}, "mount --bind "+volume+" vol")
			r.announced(t, c)
			o := begin(t, c.Command(t, "cat", c.Path("vol/file")))
			if answers == 0 {
				// The reader itself waits. Others must not, nor the garbage collector.
				receive(t, "the request", server.withheld)
				open(t, c.Path("root")).wantDenied(t)
				server.release()
				o.wantDenied(t)
			} else {
				o.wantDenied(t)
				server.release()
			}
			if gaveUp := receive(t, "the server's end", server.gaveUp); gaveUp {
				t.Error("the opener was answered only after the filesystem was")
			}
			reasons := map[audit.Reason]bool{}
			for range 1 + map[bool]int{true: 1}[answers == 0] {
				reasons[r.next(t).Reason] = true
			}
			if len(reasons) != 1 || !reasons[audit.ReasonTimeout] {
				t.Errorf("the reasons are %v", reasons)
			}
		})
	}
}

// fuseServer serves one file, in a process of its own: were it in this one, it
// could itself be what the agent must not wait for.
type fuseServer struct {
	withheld chan struct{}
	gaveUp   chan bool
	release  func()
}

// The environment that makes a test binary a FUSE server; see TestMain.
const fuseVariable = "ASSAY_TEST_FUSE_ANSWERS"

// fusePatience is for how long the server withholds what it is asked for.
const fusePatience = 5 * time.Second

func startFUSE(t *testing.T, mountpoint string, answers int) *fuseServer {
	t.Helper()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	kerneltest.Mount(t, "assay-test", mountpoint, "fuse", 0,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev.Fd()))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprint(fuseVariable, "=", answers))
	cmd.ExtraFiles = []*os.File{dev}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &fuseServer{
		withheld: make(chan struct{}, 1), gaveUp: make(chan bool, 1),
		release: func() { _ = stdin.Close() },
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		said := false
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			switch lines.Text() {
			case "withheld":
				s.withheld <- struct{}{}
			case "gave up", "released":
				if !said {
					s.gaveUp <- lines.Text() == "gave up"
				}
				said = true
			}
		}
	}()
	t.Cleanup(func() {
		_ = unix.Unmount(mountpoint, unix.MNT_DETACH)
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	return s
}

// Opcodes and sizes of the kernel's protocol (linux/fuse.h).
const (
	fuseLookup, fuseForget, fuseGetattr, fuseOpen, fuseRead = 1, 2, 3, 14, 15
	fuseRelease, fuseFlush, fuseInit, fuseInterrupt         = 18, 25, 26, 36
	fuseFileNode                                            = 2
)

type fuseHeader struct {
	Len, Opcode    uint32
	Unique, Nodeid uint64
	_              [4]uint32
}

type fuseAttr struct {
	Ino, Size, _, _, _, _               uint64
	_, _, _, Mode, Nlink, _, _, _, _, _ uint32
}

// serveFUSEFile is the server: it answers so many requests for the file's
// attributes at once, and the others when its standard input ends.
func serveFUSEFile(answers int) error {
	dev := os.NewFile(3, "fuse")
	released := make(chan string, 2)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		released <- "released"
	}()
	var held []uint64
	requests := make(chan []byte)
	go func() {
		defer close(requests)
		for {
			buf := make([]byte, 1<<17)
			n, err := dev.Read(buf)
			if err != nil {
				if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
					continue
				}
				return
			}
			requests <- buf[:n]
		}
	}()
	over := false
	for {
		select {
		case how := <-released:
			fmt.Fprintln(os.Stdout, how)
			over = true
			for _, unique := range held {
				fuseReply(dev, unique, fuseAttrOut(fuseFileNode))
			}
			held = nil
		case req, ok := <-requests:
			if !ok {
				return nil
			}
			var h fuseHeader
			if err := binary.Read(bytes.NewReader(req), binary.NativeEndian, &h); err != nil {
				return err
			}
			if h.Opcode == fuseGetattr && h.Nodeid == fuseFileNode && !over {
				if answers--; answers < 0 {
					if held = append(held, h.Unique); len(held) == 1 {
						fmt.Fprintln(os.Stdout, "withheld")
						time.AfterFunc(fusePatience, func() { released <- "gave up" })
					}
					continue
				}
			}
			fuseAnswer(dev, h)
		}
	}
}

// fuseAnswer answers what needs no thought.
func fuseAnswer(dev *os.File, h fuseHeader) {
	switch h.Opcode {
	case fuseInit:
		fuseReply(dev, h.Unique, struct {
			Major, Minor, Readahead, Flags uint32
			_                              [2]uint16
			MaxWrite, _                    uint32
			_                              [36]byte
		}{Major: 7, Minor: 31, MaxWrite: 1 << 16})
	case fuseLookup:
		fuseReply(dev, h.Unique, struct {
			Nodeid, Generation, EntryValid, AttrValid uint64
			_                                         [2]uint32
			fuseAttr
		}{Nodeid: fuseFileNode, EntryValid: 3600, fuseAttr: fuseAttrOf(fuseFileNode)})
	case fuseGetattr:
		fuseReply(dev, h.Unique, fuseAttrOut(h.Nodeid))
	case fuseOpen:
		fuseReply(dev, h.Unique, [16]byte{})
	case fuseRead:
		fuseReply(dev, h.Unique, []byte("content"))
	case fuseRelease, fuseFlush:
		fuseReply(dev, h.Unique, [0]byte{})
	case fuseForget, fuseInterrupt: // have no answer
	default:
		fuseWrite(dev, h.Unique, -int32(unix.ENOSYS), nil)
	}
}

func fuseAttrOf(node uint64) fuseAttr {
	if node == fuseFileNode {
		return fuseAttr{Ino: node, Size: uint64(len("content")), Mode: unix.S_IFREG | 0o755, Nlink: 1}
	}
	return fuseAttr{Ino: node, Mode: unix.S_IFDIR | 0o755, Nlink: 2}
}

// fuseAttrOut is valid for no time, so that the kernel asks again.
func fuseAttrOut(node uint64) any {
	return struct {
		Valid uint64
		_     [2]uint32
		fuseAttr
	}{fuseAttr: fuseAttrOf(node)}
}

func fuseReply(dev *os.File, unique uint64, body any) {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.NativeEndian, body) // values of fixed size into memory
	fuseWrite(dev, unique, 0, b.Bytes())
}

func fuseWrite(dev *os.File, unique uint64, errno int32, body []byte) {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.NativeEndian, struct {
		Len    uint32
		Error  int32
		Unique uint64
	}{uint32(16 + len(body)), errno, unique})
	b.Write(body)
	_, _ = dev.Write(b.Bytes()) // ENOENT: whoever asked is gone
}

// fuseAnswers is how many answers this process is to give, if it is a server.
func fuseAnswers() (n int, server bool) {
	n, err := strconv.Atoi(os.Getenv(fuseVariable))
	return n, err == nil
}
