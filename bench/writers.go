package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// writesPerRound is how many files each round opens for writing, none of them twice.
const writesPerRound = 250

// benchWriters measures how long an open for writing takes, with the copy-up that it
// makes in any case: unguarded, and where it breaks the lease behind a kernel mark.
func (b *bench) benchWriters() error {
	if err := b.needClamd(); err != nil {
		return err
	}
	image, err := b.needImage()
	if err != nil {
		return err
	}
	memory := filepath.Join(b.scratch, "memory")
	if err := os.MkdirAll(memory, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("bench", memory, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	var end stack
	defer end.run()
	plain, err := newContainer(memory, image.layers...)
	if err != nil {
		return err
	}
	end.push(plain.close)
	marked, err := newContainer(memory, image.layers...)
	if err != nil {
		return err
	}
	end.push(marked.close)
	if err := b.watchByAgent(marked, &end, guardConfig{kernelMarks: "layers"}); err != nil {
		return err
	}
	for _, c := range []*container{plain, marked} {
		if _, err := b.warm("", c); err != nil {
			return err
		}
	}
	note, err := b.awaitMarks(end.agent, marked)
	if err != nil {
		return err
	}
	t, err := b.write(plain, marked)
	if err != nil {
		return err
	}
	left, _, err := end.agent.awaitMarks(b.files)
	if err != nil {
		return err
	}
	if left >= 0 {
		note += fmt.Sprintf(", %d when %d files had been written to", left, len(t.Rows[0].Samples)*min(writesPerRound, b.files))
	}
	t.note("%s", note)
	t.note("upper directories in memory: on a disk, the copy-up's fsync would hide the lease")
	t.print()
	return end.agent.sound()
}

// write opens files for writing in both containers, by turns.
func (b *bench) write(plain, marked *container) (*table, error) {
	each := min(writesPerRound, b.files)
	rounds := min(b.rounds, b.files/each)
	t := b.report.add("writers", fmt.Sprintf("open of a file of a layer for writing, copy-up of its %d kB included", fileSize/1000),
		fmt.Sprintf("µs, %d rounds of %d files", rounds, each))
	for round := range rounds {
		names := b.image.names[round*each : (round+1)*each]
		if err := b.sampleWrites(t, "unguarded", plain, names); err != nil {
			return t, err
		}
		if err := b.sampleWrites(t, "kernel-marked", marked, names); err != nil {
			return t, err
		}
	}
	r := t.row("kernel-marked, median")
	r.Target = atMost(200)
	r.Target.judge(r.Median)
	t.compare("kernel-marked, median", "unguarded, median", nil)
	t.compare("kernel-marked, 99th percentile", "unguarded, 99th percentile", nil)
	return t, nil
}

func (b *bench) sampleWrites(t *table, key string, c *container, names []string) error {
	us, err := b.writeFiles(c, names)
	if err != nil {
		return err
	}
	slices.Sort(us)
	t.sample(key+", median", median(us))
	t.sample(key+", 99th percentile", us[len(us)*99/100])
	return nil
}

func (b *bench) writeFiles(c *container, names []string) ([]float64, error) {
	lists, err := b.lists(c.root, names, 1)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), passPatience)
	defer cancel()
	return numbers(inMountsOf(ctx, c.pid, b.image.writer, lists[0]), len(names))
}
