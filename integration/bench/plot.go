package main

import (
	"fmt"
	"image/color"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	_ "gonum.org/v1/plot/vg/vgsvg" // the format of all plots

	"github.com/reaper-shim/reaper/integration/harness"
	"github.com/reaper-shim/reaper/internal/benchreport"
)

// Colours that can be told apart by nearly everybody, on white and on black.
var (
	theirColour = color.RGBA{R: 0x99, G: 0x99, B: 0x99, A: 0xff}
	ourColour   = color.RGBA{R: 0x00, G: 0x72, B: 0xb2, A: 0xff}
	thirdColour = color.RGBA{R: 0xd5, G: 0x5e, B: 0x00, A: 0xff}
)

var colours = map[string]color.Color{harness.RuncRuntime: theirColour, harness.ReaperRuntime: ourColour}

const (
	plotWidth  = 22 * vg.Centimeter
	plotHeight = 9 * vg.Centimeter
	barWidth   = 12 // points
	barStep    = 0.25
)

// plot writes a picture of each part that was measured into dir.
func (r *result) plot(dir string) error {
	draw := func(name string, measured bool, f func(*plot.Plot) error) error {
		if !measured {
			return nil
		}
		p := plot.New()
		p.BackgroundColor = color.White
		p.Legend.Top = true
		p.Legend.Padding = vg.Millimeter
		// On the left its text has room, whatever font a browser takes.
		p.Legend.Left, p.Legend.XOffs = true, 5*vg.Millimeter
		if err := f(p); err != nil {
			return fmt.Errorf("plot %s: %w", name, err)
		}
		return p.Save(plotWidth, plotHeight, filepath.Join(dir, name+".svg"))
	}
	for _, err := range []error{
		draw("start", r.Start != nil, func(p *plot.Plot) error { return r.Start.plot(p) }),
		draw("idle", r.Idle != nil, func(p *plot.Plot) error { return r.Idle.plot(p) }),
		draw("reaped", r.Density != nil, func(p *plot.Plot) error { return r.Density.plot(p) }),
		draw("sweep", r.Sweep != nil, func(p *plot.Plot) error { return r.Sweep.plot(p) }),
		draw("reap", r.Reap != nil, func(p *plot.Plot) error { return r.Reap.plot(p) }),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// barAt is where the bar of series i of n stands for the value number at.
func barAt(at, i, n int) float64 { return float64(at) + barStep*(float64(i)-float64(n-1)/2) }

// bars adds a series of bars beside those of the other series: i of n.
func bars(p *plot.Plot, name string, values plotter.Values, c color.Color, i, n int) error {
	b, err := plotter.NewBarChart(values, vg.Points(barWidth))
	if err != nil {
		return err
	}
	b.Color = c
	b.LineStyle.Width = 0
	b.XMin = barAt(0, i, n)
	p.Add(b)
	p.Legend.Add(name, b)
	return nil
}

// named names the groups of bars, with room for them and for the legend.
func named(p *plot.Plot, names []string) {
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.5, float64(len(names))-0.5
	p.Y.Min, p.Y.Max = 0, p.Y.Max*1.3
}

func (s *startPart) plot(p *plot.Plot) error {
	p.Y.Label.Text = "ms: median, line to 99 %"
	var names []string
	labels := map[string]string{opStart: "start", opRun: "run", opExec: "exec", opInfo: "-info"}
	rows := s.rows()
	for _, c := range rows {
		names = append(names, fmt.Sprintf("%s × %d", labels[c.Op], c.Parallel))
	}
	for i, runtime := range runtimes {
		var medians plotter.Values
		for at, c := range rows {
			v := s.of(c.Op, c.Parallel, runtime)
			median, p99 := benchreport.Quantile(v, 0.5), benchreport.Quantile(v, 0.99)
			medians = append(medians, median)
			x := barAt(at, i, len(runtimes))
			l, err := plotter.NewLine(plotter.XYs{{X: x, Y: median}, {X: x, Y: p99}})
			if err != nil {
				return err
			}
			l.Color = color.Black
			p.Add(l)
		}
		if err := bars(p, short(runtime), medians, colours[runtime], i, len(runtimes)); err != nil {
			return err
		}
	}
	named(p, names)
	return nil
}

func (s *idlePart) plot(p *plot.Plot) error {
	p.Y.Label.Text = "MB, median"
	var names []string
	for _, kind := range []string{"RSS", "PSS", "dirty"} { // the first of idleColumns
		for _, n := range s.sizes() {
			names = append(names, fmt.Sprintf("%s, %d", kind, n))
		}
	}
	for i, runtime := range runtimes {
		var values plotter.Values
		for _, col := range idleColumns[:3] {
			for _, n := range s.sizes() {
				values = append(values, benchreport.Median(s.of(runtime, n, col.f)))
			}
		}
		if err := bars(p, short(runtime), values, colours[runtime], i, len(runtimes)); err != nil {
			return err
		}
	}
	p.X.Label.Text = "memory, and containers beside the sandbox"
	named(p, names)
	return nil
}

func (s *densityPart) plot(p *plot.Plot) error {
	p.X.Label.Text = "seconds from death to the event, grace in it"
	p.Y.Label.Text = "part of the orphans, %"
	p.Y.Min, p.Y.Max = 0, 100
	p.X.Min = 0
	for _, c := range s.Runtimes {
		if len(c.ReapMS) == 0 {
			continue
		}
		v := slices.Sorted(slices.Values(c.ReapMS))
		xys := plotter.XYs{{X: 0, Y: 0}, {X: v[0] / 1000, Y: 0}}
		for i, ms := range v {
			// Two hundred steps are all that can be seen.
			if i%max(1, len(v)/200) == 0 || i == len(v)-1 {
				xys = append(xys, plotter.XY{X: ms / 1000, Y: 100 * float64(i+1) / float64(len(v))})
			}
		}
		l, err := plotter.NewLine(xys)
		if err != nil {
			return err
		}
		l.Color = colours[c.Runtime]
		p.Add(l)
		p.Legend.Add(short(c.Runtime), l)
	}
	p.Add(plotter.NewGrid())
	return nil
}

func (s *sweepPart) plot(p *plot.Plot) error {
	p.X.Label.Text = "processes in the container"
	p.Y.Label.Text = "µs of CPU, median"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	for _, series := range []struct {
		name     string
		children bool
		c        color.Color
		f        func(sweepCase) []float64
	}{
		{"children of PID 1", true, ourColour, func(c sweepCase) []float64 { return c.Micros }},
		{"of another process", false, theirColour, func(c sweepCase) []float64 { return c.Micros }},
		{"of another process, every 10 s", false, thirdColour, func(c sweepCase) []float64 { return c.Full }},
	} {
		var xys plotter.XYs
		for _, c := range s.Cases {
			if v := series.f(c); c.Children == series.children && len(v) > 0 {
				xys = append(xys, plotter.XY{X: float64(c.Processes), Y: benchreport.Median(v)})
			}
		}
		if len(xys) == 0 {
			continue
		}
		l, points, err := plotter.NewLinePoints(xys)
		if err != nil {
			return err
		}
		l.Color, points.Color = series.c, series.c
		p.Add(l, points)
		p.Legend.Add(series.name, l, points)
	}
	p.Add(plotter.NewGrid())
	p.X.Max *= 1.2 // room for the last number
	return nil
}

func (s *reapPart) plot(p *plot.Plot) error {
	p.Y.Label.Text = "µs of CPU, median"
	var names []string
	var container, shim plotter.Values
	labels := map[string]string{whoNobody: "runc.v2 (kept)", whoTini: "tini", whoAssist: "reaper.v2", whoInit: "reaper.v2, init"}
	for _, c := range s.Cases {
		if len(c.Samples) == 0 {
			continue
		}
		names = append(names, labels[c.Who])
		container = append(container, benchreport.Median(c.of(func(s reapSample) float64 { return s.Container })))
		shim = append(shim, benchreport.Median(c.of(func(s reapSample) float64 { return s.Shim })))
	}
	if err := bars(p, "in the container", container, theirColour, 0, 2); err != nil {
		return err
	}
	if err := bars(p, "in shim and tracer", shim, ourColour, 1, 2); err != nil {
		return err
	}
	named(p, names)
	return nil
}
