package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// containers is how many containers of one image are started one after another.
	containers = 10
	// peerPatience bounds the life of a peer: it guards files and could hang their
	// openers.
	peerPatience = 4 * time.Minute
)

// benchPeers measures what others take for the same files, and in the same rounds
// what the first pass in a second and a tenth container of one image takes.
func (b *bench) benchPeers() error {
	if err := b.needClamd(); err != nil {
		return err
	}
	if _, err := b.needImage(); err != nil {
		return err
	}
	t := b.report.add("peers", fmt.Sprintf("%d files in further containers of an image, and under peers: open, read, close", b.files),
		fmt.Sprintf("µs per file, %d rounds", b.slowRounds))
	failed := map[string]bool{}
	var scans scanCount
	for range b.slowRounds {
		for _, p := range b.peers() {
			if failed[p.name] {
				continue
			}
			if err := b.measurePeer(t, p); err != nil {
				failed[p.name] = true
				b.report.miss(p.name, err)
			}
		}
		if err := b.furtherContainers(t, &scans); err != nil {
			return err
		}
	}
	for _, key := range []string{"second container, first pass", "tenth container, first pass"} {
		t.compare("clamonacc, first pass", key, atLeast(200))
	}
	t.note("%s", scans.String())
	t.Counts = scans.counts()
	t.note("clamonacc: prevention on, descriptors passed to the same clamd; fapolicyd: one rule that allows all, decisions cached, reads no content")
	t.print()
	return nil
}

// A scanCount is how many scans containers caused after the first one.
type scanCount struct {
	told                  bool
	first, second, others uint64
}

// counts returns the numbers for programs, nil if the agent does not tell.
func (s *scanCount) counts() map[string]uint64 {
	if !s.told {
		return nil
	}
	return map[string]uint64{"scansFirst": s.first, "scansSecond": s.second, "scansThirdToTenth": s.others}
}

func (s *scanCount) String() string {
	if !s.told {
		return "scans caused: the agent does not tell"
	}
	return fmt.Sprintf("scans caused, over all rounds: %d by the first container, %d by the second, %d by the third to tenth (target 0)", s.first, s.second, s.others)
}

// furtherContainers starts containers of one image under a fresh agent, one after
// another, each of which reads all files.
func (b *bench) furtherContainers(t *table, count *scanCount) error {
	var end stack
	defer end.run()
	a, err := b.newAssayd(guardConfig{scanner: b.clamdScanner(), kernelMarks: "layers"})
	if err != nil {
		return err
	}
	end.push(a.stop)
	var before uint64
	for n := 1; n <= containers; n++ {
		c, err := b.newContainer(b.image.layers...)
		if err != nil {
			return err
		}
		end.push(c.close)
		if err := a.guard(c); err != nil {
			return err
		}
		us, err := b.readOnce(c, 1)
		if err != nil {
			return err
		}
		scans, told, err := a.scans()
		if err != nil {
			return err
		}
		count.told = told
		switch n {
		case 1:
			count.first += scans
			t.sample("first container, first pass", us)
		case 2:
			count.second += scans - before
			t.sample("second container, first pass", us)
		default:
			count.others += scans - before
		}
		if n == containers {
			t.sample("tenth container, first pass", us)
		}
		before = scans
	}
	return a.sound()
}

// A peer guards the files of a container, too.
type peer struct {
	name string
	// start starts it, and returns the process whose mounts it sees.
	start func(ctx context.Context, c *container) (pid int, stop func(), err error)
}

func (b *bench) peers() []peer {
	return []peer{{"clamonacc", b.startClamonacc}, {"fapolicyd", b.startFapolicyd}}
}

// measurePeer measures a first and a later pass under a peer.
func (b *bench) measurePeer(t *table, p peer) error {
	ctx, cancel := context.WithTimeout(context.Background(), peerPatience)
	defer cancel()
	c, err := b.newContainer(b.image.layers...)
	if err != nil {
		return err
	}
	defer c.close()
	list, err := b.list(c.root)
	if err != nil {
		return err
	}
	pid, stop, err := p.start(ctx, c)
	if err != nil {
		return err
	}
	defer stop()
	us, err := b.readList(pid, list, visit{"read", 2, 1})
	if err != nil {
		return err
	}
	t.sample(p.name+", first pass", us[0])
	t.sample(p.name+", later pass", us[1])
	return nil
}

// startPeer starts a program and returns when it has said that it is ready.
func startPeer(p *exec.Cmd, log, ready string) (stop func(), err error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.Stdout, p.Stderr = out, out
	if err := p.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = p.Wait()
		close(ended)
	}()
	stop = func() {
		_ = p.Process.Kill()
		<-ended
	}
	var said []byte
	err = until(30*time.Second, func() error {
		if said, _ = os.ReadFile(log); bytes.Contains(said, []byte(ready)) {
			return nil
		}
		select {
		case <-ended:
			return nil
		default:
			return errors.New("it does not get ready")
		}
	})
	if err == nil && !bytes.Contains(said, []byte(ready)) {
		err = errors.New("it ended")
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("%w: %s", err, lastLine(said))
	}
	return stop, nil
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// startClamonacc starts clamonacc on the root of a container. It follows paths, and
// so sees the mounts of its own namespace only.
func (b *bench) startClamonacc(ctx context.Context, c *container) (pid int, stop func(), err error) {
	program, err := exec.LookPath("clamonacc")
	if err != nil {
		return 0, nil, fmt.Errorf("%w (apt-get install clamav-daemon)", err)
	}
	config, log := filepath.Join(c.dir, "clamonacc.conf"), filepath.Join(c.dir, "clamonacc.log")
	if err := fill("clamonacc.conf", config, map[string]string{"DIR": b.clamd.dir, "FILES": c.root}); err != nil {
		return 0, nil, err
	}
	p := inMountsOf(ctx, c.pid, program, "--config-file="+config, "--fdpass", "--foreground")
	stop, err = startPeer(p, log, "ClamInotif: watching '"+c.root+"'")
	return c.pid, stop, err
}

// startFapolicyd starts fapolicyd in a mount namespace of its own; see runFapolicyd.
func (b *bench) startFapolicyd(ctx context.Context, c *container) (pid int, stop func(), err error) {
	if _, err := exec.LookPath("fapolicyd"); err != nil {
		return 0, nil, fmt.Errorf("%w (apt-get install fapolicyd, then systemctl disable --now fapolicyd: it guards the whole machine)", err)
	}
	self, err := os.Executable()
	if err != nil {
		return 0, nil, err
	}
	p := exec.CommandContext(ctx, self, "fapolicyd", c.root)
	p.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	stop, err = startPeer(p, filepath.Join(c.dir, "fapolicyd.log"), "Starting to listen for events")
	if err != nil {
		return 0, nil, err
	}
	return p.Process.Pid, stop, nil
}

// runFapolicyd is the role of the program that fapolicyd is started by, in a mount
// namespace of its own. fapolicyd guards every mount of the watched types that it
// sees, puts its files at fixed paths, and has its configuration at another. So it
// sees one overlay, and directories that are only this namespace's.
func runFapolicyd(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: bench fapolicyd MOUNTPOINT")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unmountOverlays(args[0]); err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(peersDir, "fapolicyd.conf"))
	if err != nil {
		return err
	}
	rules, err := os.ReadFile(filepath.Join(peersDir, "fapolicyd.rules"))
	if err != nil {
		return err
	}
	program, err := exec.LookPath("fapolicyd")
	if err != nil {
		return err
	}
	for _, dir := range []string{"/run", "/var/lib/fapolicyd", "/etc/fapolicyd"} {
		if err := unix.Mount("bench", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
		}
	}
	if err := os.Mkdir("/run/fapolicyd", 0o755); err != nil {
		return err
	}
	// Any file will do, but a list without one will not.
	const trusted = "/bin/true 1 0000000000000000000000000000000000000000000000000000000000000000\n"
	for name, text := range map[string]string{
		"fapolicyd.conf": string(config), "compiled.rules": string(rules), "fapolicyd.trust": trusted,
	} {
		if err := os.WriteFile(filepath.Join("/etc/fapolicyd", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return unix.Exec(program, []string{"fapolicyd", "--debug-deny"}, os.Environ())
}

// unmountOverlays unmounts, in this namespace, every overlay but one.
func unmountOverlays(but string) error {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != "overlay" || fields[1] == but {
			continue
		}
		if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", fields[1], err)
		}
	}
	return nil
}
