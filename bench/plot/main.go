// Command plot draws what `bench -json` wrote: one bar for each of the ways to
// guard a file, on a logarithmic scale.
//
// usage: plot RESULT.json PICTURE.svg
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"image/color"
	"os"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: plot RESULT.json PICTURE.svg")
	}
	content, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var r result
	if err := json.Unmarshal(content, &r); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	b := r.bars()
	if len(b) == 0 {
		return fmt.Errorf("%s: nothing to draw", args[0])
	}
	return save(picture(b, r.Machine.title()), vg.Length(len(b)+3)*0.9*vg.Centimeter, args[1])
}

// save writes the picture with a margin, which the library's own Save does not leave.
func save(p *plot.Plot, height vg.Length, name string) (err error) {
	const margin = 0.3 * vg.Centimeter
	c := vgsvg.New(20*vg.Centimeter, height)
	p.Draw(draw.Crop(draw.New(c), margin, -margin, margin, -margin))
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = c.WriteTo(f)
	return errors.Join(err, f.Close())
}

// number prints three digits, or more before the point.
func number(us float64) string {
	if us < 100 {
		return fmt.Sprintf("%.1f", us)
	}
	return fmt.Sprintf("%.0f", us)
}

// A result is what is drawn of the benchmark's report.
type result struct {
	Machine machine `json:"machine"`
	Tables  []struct {
		Name string `json:"name"`
		Rows []struct {
			Key    string  `json:"key"`
			Median float64 `json:"median"`
		} `json:"rows"`
	} `json:"tables"`
}

type machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
}

func (m machine) title() string {
	return fmt.Sprintf("open, read and close of a 20 kB file (%s, %d CPUs, Linux %s)", m.CPU, m.CPUs, m.Kernel)
}

// bars returns the bars of the picture that were measured, from the top.
func (r *result) bars() bars {
	var all bars
	for _, want := range []struct {
		table, key, label string
		own               bool
	}{
		{"known-read", "unguarded", "unguarded", false},
		{"known-read", "kernel-marked", "Assay, kernel-marked", true},
		{"known-read", "floor", "floor, always allows", false},
		{"known-read", "cached", "Assay, cached", true},
		{"peers", "second container, first pass", "Assay, second container", true},
		{"peers", "fapolicyd, later pass", "fapolicyd, no content", false},
		{"first", "first pass, 1 stream", "Assay, first pass (clamd)", true},
		{"first", "clamdscan, 1 stream", "clamdscan --fdpass", false},
		{"peers", "clamonacc, later pass", "clamonacc, every pass", false},
	} {
		if us := r.median(want.table, want.key); us > 0 {
			all = append(all, bar{label: want.label, us: us, own: want.own})
		}
	}
	return all
}

// median returns the median of a row, 0 if it is not there.
func (r *result) median(table, key string) float64 {
	for _, t := range r.Tables {
		if t.Name != table {
			continue
		}
		for _, row := range t.Rows {
			if row.Key == key {
				return row.Median
			}
		}
	}
	return 0
}

// A bar is one variant.
type bar struct {
	label string
	us    float64
	own   bool // Assay's
}

// bars are a plotter, because the library's own bars begin at 0, which a
// logarithmic scale does not have.
type bars []bar

func picture(b bars, title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.Title.Padding = vg.Points(8)
	p.X.Label.Text = "µs per file, logarithmic"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Add(b)
	labels := make([]string, len(b))
	for i := range b {
		labels[len(b)-1-i] = b[i].label
	}
	p.NominalY(labels...)
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = b.span()
	return p
}

// span is the data range, with room for the numbers.
func (b bars) span() (xmin, xmax, ymin, ymax float64) {
	most := slices.MaxFunc(b, func(a, b bar) int { return int(a.us - b.us) })
	for xmax = 10; xmax < most.us*3; {
		xmax *= 10
	}
	return 1, xmax, -0.6, float64(len(b)) - 0.4
}

// DataRange is part of plot.DataRanger.
func (b bars) DataRange() (xmin, xmax, ymin, ymax float64) { return b.span() }

// Plot is plot.Plotter.
func (b bars) Plot(c draw.Canvas, p *plot.Plot) {
	const half = 0.36
	x, y := p.Transforms(&c)
	style := text.Style{
		Color: color.Black, Font: font.From(plot.DefaultFont, vg.Points(10)), YAlign: text.YCenter, Handler: plot.DefaultTextHandler,
	}
	for i, one := range b {
		at := float64(len(b) - 1 - i)
		fill := color.RGBA{R: 0x9a, G: 0xa5, B: 0xb1, A: 0xff}
		if one.own {
			fill = color.RGBA{R: 0x1f, G: 0x6f, B: 0xb4, A: 0xff}
		}
		c.FillPolygon(fill, []vg.Point{
			{X: x(p.X.Min), Y: y(at - half)},
			{X: x(one.us), Y: y(at - half)},
			{X: x(one.us), Y: y(at + half)},
			{X: x(p.X.Min), Y: y(at + half)},
		})
		c.FillText(style, vg.Point{X: x(one.us) + vg.Points(5), Y: y(at)}, number(one.us))
	}
}
