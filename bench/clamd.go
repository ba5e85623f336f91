package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-project/assay/scanner/clamd/clamdtest"
)

const (
	peersDir = "bench/peers"
	// passPatience bounds one pass over the files, whoever makes it.
	passPatience = 3 * time.Minute
)

// A clamd is a private clamd.
type clamd struct {
	dir    string
	config string
	socket string
	stop   func()
}

// needClamd starts clamd unless it runs.
func (b *bench) needClamd() error {
	if b.clamd != nil {
		return nil
	}
	dir, err := os.MkdirTemp(b.scratch, "clamd-")
	if err != nil {
		return err
	}
	c := &clamd{dir: dir, config: filepath.Join(dir, "clamd.conf"), socket: filepath.Join(dir, "clamd.ctl")}
	database := b.database
	if database == "" {
		database = filepath.Join(dir, "db")
		if err := writeDatabase(database); err != nil {
			return err
		}
	}
	if err := fill("clamd.conf", c.config, map[string]string{"DIR": dir, "DATABASE": database}); err != nil {
		return err
	}
	if err := c.run(); err != nil {
		return err
	}
	b.clamd = c
	return nil
}

func writeDatabase(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	content, err := clamdtest.Database(1, clamdtest.Default())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, clamdtest.DatabaseName), content, 0o644)
}

// fill writes a configuration of bench/peers with its @NAMES@ replaced.
func fill(name, to string, values map[string]string) error {
	text, err := os.ReadFile(filepath.Join(peersDir, name))
	if err != nil {
		return fmt.Errorf("%w (the project's root must be the working directory)", err)
	}
	var pairs []string
	for key, value := range values {
		pairs = append(pairs, "@"+key+"@", value)
	}
	return os.WriteFile(to, []byte(strings.NewReplacer(pairs...).Replace(string(text))), 0o644)
}

// run starts clamd and returns when it answers.
func (c *clamd) run() error {
	out, err := os.Create(filepath.Join(c.dir, "out"))
	if err != nil {
		return err
	}
	defer out.Close()
	p := exec.Command("clamd", "--config-file="+c.config)
	p.Stdout, p.Stderr = out, out
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := p.Start(); err != nil {
		return fmt.Errorf("%w (apt-get install clamav-daemon)", err)
	}
	c.stop = func() {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
	if err := until(time.Minute, c.ping); err != nil {
		c.stop()
		said, _ := os.ReadFile(out.Name())
		return fmt.Errorf("clamd does not answer: %w: %s", err, said)
	}
	return nil
}

func (c *clamd) ping() error {
	conn, err := net.DialTimeout("unix", c.socket, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("zPING\x00")); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err == nil && string(answer) != "PONG\x00" {
		err = fmt.Errorf("it says %q", answer)
	}
	return err
}

// scan runs one clamdscan for each list, at once, and returns the microseconds per
// file. With multi, each uses all of clamd's threads (-m).
func (c *clamd) scan(lists []string, files int, multi bool) (us float64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), passPatience)
	defer cancel()
	var running []*exec.Cmd
	began := time.Now()
	for _, list := range lists {
		args := []string{"--config-file=" + c.config, "--fdpass", "--quiet", "--no-summary", "--file-list=" + list}
		if multi {
			args = append(args, "--multiscan")
		}
		p := exec.CommandContext(ctx, "clamdscan", args...)
		p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		p.Stderr = os.Stderr
		if err := p.Start(); err != nil {
			return 0, err
		}
		running = append(running, p)
	}
	for _, p := range running {
		if waitErr := p.Wait(); waitErr != nil {
			err = fmt.Errorf("clamdscan: %w", waitErr)
		}
	}
	return float64(time.Since(began).Nanoseconds()) / 1e3 / float64(files), err
}
