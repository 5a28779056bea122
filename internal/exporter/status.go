package exporter

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/internal/escape"
)

//go:embed status.html
var statusHTML string

var statusTemplate = template.Must(template.New("status").Parse(statusHTML))

// page is what status.html shows.
type page struct {
	At                           string
	Err                          string
	Refresh                      int // seconds
	Watched, Foreign, Unanswered int
	Zombies                      int
	Rows                         []row
	Commands                     []commandRow
}

type row struct {
	Namespace, Pod, Container string
	Mode, ForkLog             string
	Adopted, Own, Unproven    int
	Held                      int
	Oldest, Stop              string
	Overdue                   bool // an orphan is older than it should get
	Reaped                    uint64
	PIDs                      string
	Full                      bool // little is left of the limit of PIDs
	Zombies, Reaps            line
}

type commandRow struct {
	Command string
	Zombies int
}

const (
	// sparkline's size in pixels.
	sparkWidth, sparkHeight = 90, 24
	// overdue is how much longer than the grace period an orphan stays at most (README), fullShare of the limit of PIDs is nearly all.
	overdue   = time.Second
	fullShare = 0.8
)

// line is a sparkline: the points of an SVG polyline, and its highest value.
type line struct {
	Points string
	Max    string
}

// sparkline draws values from the left to the right, the last one at the right end.
func sparkline(values []float64) line {
	if len(values) == 0 {
		return line{}
	}
	top := slices.Max(values)
	var b strings.Builder
	for i, v := range values {
		x := sparkWidth - float64(len(values)-1-i)*sparkWidth/(history-1)
		y := float64(sparkHeight - 1)
		if top > 0 {
			y -= v / top * (sparkHeight - 2)
		}
		fmt.Fprintf(&b, "%.1f,%.1f ", x, y)
	}
	return line{Points: strings.TrimSpace(b.String()), Max: fmt.Sprintf("%g", top)}
}

// steps are the differences of neighbours, of a counter.
func steps(values []float64) []float64 {
	var out []float64
	for i := 1; i < len(values); i++ {
		out = append(out, values[i]-values[i-1])
	}
	return out
}

// page is the state as the page shows it.
func (e *exporter) page() page {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := page{
		At: e.lookedAt.UTC().Format("2006-01-02 15:04:05 UTC"), Refresh: max(1, int(e.cfg.interval.Seconds())),
		Watched: e.states["watched"], Foreign: e.states["foreign"], Unanswered: e.states["unanswered"],
	}
	if e.err != nil {
		p.Err = escape.Text(e.err.Error())
	}
	for _, c := range e.now {
		r := row{
			Namespace: c.namespace, Pod: c.pod, Container: c.container,
			Mode: c.stats.GetEffectiveMode(), ForkLog: c.stats.GetForkLog().GetSource(),
			Adopted: c.zombies[0], Own: c.zombies[1], Unproven: c.zombies[2], Held: c.zombies[3],
			Oldest: rounded(c.oldest), Stop: rounded(c.longestStop), Reaped: uint64(e.reapedOf(c.names)),
			Overdue: c.zombies[0] > 0 && c.stats.GetEffectiveMode() == "assist" && c.oldest > c.stats.GetGraceInForce().AsDuration()+overdue,
		}
		if c.pids > 0 {
			r.PIDs = fmt.Sprint(c.pids)
		}
		if c.limit > 0 {
			r.PIDs += fmt.Sprintf(" of %d", c.limit)
			r.Full = float64(c.pids) > fullShare*float64(c.limit)
		}
		if t := e.history[c.names]; t != nil {
			r.Zombies, r.Reaps = sparkline(t.zombies), sparkline(steps(t.reaped))
		}
		p.Zombies += c.total()
		p.Rows = append(p.Rows, r)
	}
	slices.SortStableFunc(p.Rows, func(a, b row) int {
		return b.Adopted + b.Own + b.Unproven + b.Held - (a.Adopted + a.Own + a.Unproven + a.Held)
	})
	for command, n := range e.commands {
		if n > 0 {
			p.Commands = append(p.Commands, commandRow{command, n})
		}
	}
	slices.SortFunc(p.Commands, func(a, b commandRow) int {
		if a.Zombies != b.Zombies {
			return b.Zombies - a.Zombies
		}
		return strings.Compare(a.Command, b.Command)
	})
	return p
}

// rounded is a length of time for people, "" for none.
func rounded(d time.Duration) string {
	switch {
	case d == 0:
		return ""
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

// status serves the page. It has no scripts and loads nothing.
func (e *exporter) status(w http.ResponseWriter) {
	var b bytes.Buffer
	if err := statusTemplate.Execute(&b, e.page()); err != nil {
		e.cfg.log.Error("make the status page", "err", err)
		http.Error(w, "the page cannot be made: see the log", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(b.Bytes()) // a client that has gone away
}
