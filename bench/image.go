package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	imageLayers = 2
	fileSize    = 20_000
)

// An image is the files that everything but the opens with many openers is
// measured on: pseudo-random, all distinct, spread evenly over its layers.
type image struct {
	layers []string // directories, topmost first
	names  []string
	reader string // the program that opens, reads and closes
	writer string // the program that opens for writing
}

// needImage makes the image unless it is there, and leaves it in the page cache.
func (b *bench) needImage() (*image, error) {
	if b.image != nil {
		return b.image, nil
	}
	i := &image{}
	var err error
	if i.reader, err = compile(b.scratch, "reader"); err != nil {
		return nil, err
	}
	if i.writer, err = compile(b.scratch, "writer"); err != nil {
		return nil, err
	}
	random := rand.NewChaCha8([32]byte{1})
	content := make([]byte, fileSize)
	for l := range imageLayers {
		dir := filepath.Join(b.scratch, fmt.Sprint("layer", l))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		for n := l * b.files / imageLayers; n < (l+1)*b.files/imageLayers; n++ {
			_, _ = random.Read(content) // never fails
			name := fmt.Sprint("file", n)
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				return nil, err
			}
			i.names = append(i.names, name)
		}
		i.layers = append(i.layers, dir)
	}
	b.image = i
	return i, nil
}

// lists writes the paths of the files names in root to n lists, by turns.
func (b *bench) lists(root string, names []string, n int) ([]string, error) {
	texts := make([]strings.Builder, n)
	for i, name := range names {
		fmt.Fprintln(&texts[i%n], filepath.Join(root, name))
	}
	var lists []string
	for i := range texts {
		f, err := os.CreateTemp(b.scratch, "list-")
		if err != nil {
			return nil, err
		}
		_, err = f.WriteString(texts[i].String())
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return nil, err
		}
		lists = append(lists, f.Name())
	}
	return lists, nil
}

// list writes the paths of all files to one list.
func (b *bench) list(root string) (string, error) {
	lists, err := b.lists(root, b.image.names, 1)
	if err != nil {
		return "", err
	}
	return lists[0], nil
}

// A visit is how files are visited.
type visit struct {
	how     string // open: open and close; read: open, read, close
	passes  int
	streams int
}

// read visits all files of a container from inside of it, and returns the
// microseconds per file of each pass.
func (b *bench) read(c *container, v visit) ([]float64, error) {
	list, err := b.list(c.root)
	if err != nil {
		return nil, err
	}
	return b.readList(c.pid, list, v)
}

// readOnce is read for a single pass.
func (b *bench) readOnce(c *container, streams int) (float64, error) {
	us, err := b.read(c, visit{"read", 1, streams})
	if err != nil {
		return 0, err
	}
	return us[0], nil
}

func (b *bench) readList(pid int, list string, v visit) ([]float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), passPatience)
	defer cancel()
	p := inMountsOf(ctx, pid, b.image.reader, v.how, list, strconv.Itoa(v.passes), strconv.Itoa(v.streams))
	return numbers(p, v.passes)
}

// numbers runs a program that prints one number a line.
func numbers(p *exec.Cmd, want int) ([]float64, error) {
	out, err := p.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(p.Args, " "), err)
	}
	var all []float64
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		n, err := strconv.ParseFloat(lines.Text(), 64)
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	if len(all) != want {
		return nil, fmt.Errorf("%s: %d numbers instead of %d", p.Path, len(all), want)
	}
	return all, nil
}
