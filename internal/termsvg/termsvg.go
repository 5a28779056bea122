// Package termsvg draws what a program shows on a terminal as an SVG, for the pages in docs, and reads the text of such a picture back.
package termsvg

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"image/color"
	"io"
	"strings"

	uv "github.com/charmbracelet/ultraviolet"
	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/vt"
)

// Screen is a terminal that is only written to. It is not safe for concurrent use.
type Screen struct {
	terminal *vt.Emulator
}

// NewScreen returns an empty one of that many columns and lines.
func NewScreen(width, height int) *Screen {
	return &Screen{terminal: vt.NewEmulator(width, height)}
}

// Write shows what a program has written to its terminal.
func (s *Screen) Write(p []byte) (int, error) { return s.terminal.Write(p) }

// Answers are what the terminal says to the program that asks it something. They have to be read, or Write waits for ever; the end comes
// with Close.
func (s *Screen) Answers() io.Reader { return s.terminal }

// Close ends Answers.
func (s *Screen) Close() error {
	// The emulator's own Close writes what its Read reads, without a lock.
	if pipe, ok := s.terminal.InputPipe().(io.Closer); ok {
		return pipe.Close()
	}
	return s.terminal.Close()
}

// style is how text looks: colours by their number in the terminal's palette, -1 for the terminal's own.
type style struct {
	ink                int
	bold, dim, reverse bool
}

var normal = style{ink: -1}

// run is text of one look within a line, without gaps of two blanks or more.
type run struct {
	column int
	text   string
	style  style
	width  int // columns
}

// Lines returns the text of the screen, without the blanks at the end of lines and the empty lines below.
func (s *Screen) Lines() []string {
	var lines []string
	for _, runs := range s.lines() {
		lines = append(lines, join(runs))
	}
	return lines
}

// join puts runs back where they were in a line.
func join(runs []run) string {
	var b strings.Builder
	at := 0
	for _, r := range runs {
		b.WriteString(strings.Repeat(" ", max(0, r.column-at)) + r.text)
		at = r.column + r.width
	}
	return strings.TrimRight(b.String(), " ")
}

func (s *Screen) lines() [][]run {
	var lines [][]run
	used := 0
	for y := range s.terminal.Height() {
		line := s.line(y)
		lines = append(lines, line)
		if len(line) > 0 {
			used = y + 1
		}
	}
	return lines[:used]
}

func (s *Screen) line(y int) []run {
	var (
		runs []run
		cur  run
	)
	flush := func() {
		text := strings.TrimRight(cur.text, " ")
		if cur.style.reverse { // its blanks are seen
			text = cur.text
		}
		if text != "" {
			cur.width -= len(cur.text) - len(text)
			cur.text = text
			runs = append(runs, cur)
		}
		cur = run{}
	}
	for x := 0; x < s.terminal.Width(); {
		c := s.terminal.CellAt(x, y)
		text, st, width := " ", normal, 1
		if c != nil && c.Content != "" {
			text, st, width = c.Content, styleOf(c.Style), max(1, c.Width)
		}
		switch {
		case cur.text == "":
		case st != cur.style, text == " " && strings.HasSuffix(cur.text, " ") && !st.reverse:
			flush()
		}
		if cur.text == "" {
			if text == " " && !st.reverse {
				x++
				continue
			}
			cur.column, cur.style = x, st
		}
		cur.text += text
		cur.width += width
		x += width
	}
	flush()
	return runs
}

func styleOf(s uv.Style) style {
	st := style{ink: -1, bold: s.Attrs&uv.AttrBold != 0, dim: s.Attrs&uv.AttrFaint != 0, reverse: s.Attrs&uv.AttrReverse != 0}
	if c, ok := s.Fg.(ansi.BasicColor); ok {
		st.ink = int(c)
	}
	return st
}

// Sizes in the picture, in pixels: a character's are those of most fixed-width fonts at this size, and text is stretched to them where they
// are not.
const (
	fontSize   = 14
	cellWidth  = 8.4
	cellHeight = 19
	margin     = 16
	baseline   = 14 // of a line's text below its top
)

// inks are the colours of programs that take the first eight of the palette, on a light and on a dark page, with a contrast of at least
// 4.5 to 1 (WCAG 2, 1.4.3).
var inks = []struct {
	name        string
	light, dark color.RGBA
}{
	{"k", rgb(0x1f2328), rgb(0x8b949e)},
	{"r", rgb(0xcf222e), rgb(0xff7b72)},
	{"g", rgb(0x1a7f37), rgb(0x56d364)},
	{"y", rgb(0x8a5a00), rgb(0xe3b341)},
	{"b", rgb(0x0969da), rgb(0x79c0ff)},
	{"m", rgb(0x8250df), rgb(0xd2a8ff)},
	{"c", rgb(0x1b6b72), rgb(0x56d4dd)},
	{"w", rgb(0x59636e), rgb(0xf0f6fc)},
}

func rgb(v uint32) color.RGBA {
	return color.RGBA{R: uint8(v >> 16), G: uint8(v >> 8), B: uint8(v), A: 0xff}
}

func hex(c color.RGBA) string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }

var (
	paper  = [2]color.RGBA{rgb(0xffffff), rgb(0x0d1117)}
	text   = [2]color.RGBA{rgb(0x1f2328), rgb(0xe6edf3)}
	border = [2]color.RGBA{rgb(0xd1d9e0), rgb(0x3d444d)}
)

// SVG draws the screen, as wide as its longest line. It follows the reader's preference for a light or a dark page.
func (s *Screen) SVG(title string) []byte {
	lines := s.lines()
	columns := 1
	for _, runs := range lines {
		if n := len(runs); n > 0 {
			columns = max(columns, runs[n-1].column+runs[n-1].width)
		}
	}
	width, height := float64(columns)*cellWidth+2*margin, len(lines)*cellHeight+2*margin
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d" viewBox="0 0 %.0f %d" role="img">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n<style>\n", escaped(title))
	fmt.Fprintf(&b, "text { font: %dpx ui-monospace, SFMono-Regular, Menlo, Consolas, \"DejaVu Sans Mono\", \"Liberation Mono\", monospace; white-space: pre; }\n", fontSize)
	b.WriteString(".bold { font-weight: 600; }\n")
	b.WriteString(rules(0))
	b.WriteString("@media (prefers-color-scheme: dark) {\n" + rules(1) + "}\n</style>\n")
	fmt.Fprintf(&b, `<rect class="paper" x=".5" y=".5" width="%.0f" height="%d" rx="6"/>`+"\n", width-1, height-1)
	for y, runs := range lines {
		top := margin + y*cellHeight
		for _, r := range runs {
			x, length := margin+float64(r.column)*cellWidth, float64(r.width)*cellWidth
			if r.style.reverse {
				fmt.Fprintf(&b, `<rect class="ink" x="%.1f" y="%d" width="%.1f" height="%d"/>`+"\n", x, top, length, cellHeight)
			}
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" textLength="%.1f" lengthAdjust="spacingAndGlyphs"%s>%s</text>`+"\n",
				x, top+baseline, length, r.style.class(), escaped(r.text))
		}
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// rules are those of one theme, 0 for light and 1 for dark.
func rules(theme int) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".paper { fill: %s; stroke: %s; }\n.ink, text { fill: %s; }\n.reverse { fill: %s; }\n", hex(paper[theme]), hex(border[theme]), hex(text[theme]), hex(paper[theme]))
	faint := rgb(0x59636e)
	if theme == 1 {
		faint = rgb(0x9198a1)
	}
	fmt.Fprintf(&b, ".dim { fill: %s; }\n", hex(faint))
	for _, ink := range inks {
		c := ink.light
		if theme == 1 {
			c = ink.dark
		}
		fmt.Fprintf(&b, ".%s { fill: %s; }\n", ink.name, hex(c))
	}
	return b.String()
}

func (s style) class() string {
	var names []string
	if s.bold {
		names = append(names, "bold")
	}
	switch {
	case s.reverse:
		names = append(names, "reverse")
	case s.dim:
		names = append(names, "dim")
	case s.ink >= 0:
		names = append(names, inks[s.ink%len(inks)].name)
	}
	if names == nil {
		return ""
	}
	return fmt.Sprintf(` class="%s"`, strings.Join(names, " "))
}

func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}

// Text returns the lines of text in a picture that SVG has drawn.
func Text(svg []byte) ([]string, error) {
	var doc struct {
		Texts []struct {
			X      float64 `xml:"x,attr"`
			Y      int     `xml:"y,attr"`
			Length float64 `xml:"textLength,attr"`
			Text   string  `xml:",chardata"`
		} `xml:"text"`
	}
	if err := xml.Unmarshal(svg, &doc); err != nil {
		return nil, fmt.Errorf("read a picture: %w", err)
	}
	var lines [][]run
	for _, t := range doc.Texts {
		row := (t.Y - margin - baseline) / cellHeight
		if row < 0 || row > 1000 {
			return nil, fmt.Errorf("read a picture: text at height %d", t.Y)
		}
		for len(lines) <= row {
			lines = append(lines, nil)
		}
		lines[row] = append(lines[row], run{column: int((t.X-margin)/cellWidth + .5), text: t.Text, width: int(t.Length/cellWidth + .5)})
	}
	out := make([]string, len(lines))
	for i, runs := range lines {
		out[i] = join(runs)
	}
	return out, nil
}
