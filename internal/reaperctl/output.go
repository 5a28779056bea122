package reaperctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/reaper-shim/reaper/internal/escape"
)

const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

var formats = []string{formatTable, formatWide, formatJSON, formatYAML}

// apiVersion stands in every document: fields keep their meaning within it.
const apiVersion = "reaperctl/v1"

// header begins every document.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

func kind(name string) header { return header{APIVersion: apiVersion, Kind: name} }

// print writes v as a document, or the table that is made of it.
func (a *app) print(v any, table func(wide bool) *table) error {
	var (
		out []byte
		err error
	)
	switch a.format {
	case formatJSON:
		out, err = toJSON(v, "  ")
	case formatYAML:
		out, err = toYAML(v)
	default:
		out = table(a.format == formatWide).render(a.color, a.width)
	}
	if err != nil {
		return fmt.Errorf("encode as %s: %w", a.format, err)
	}
	_, err = a.out.Write(out)
	return err
}

// toJSON encodes v in one line, or indented. What does not print is escaped: encoding/json leaves out direction marks and others.
func toJSON(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return escapeUnprintable(b.Bytes()), nil
}

// escapeUnprintable writes what does not print as JSON does, in two halves where it is beyond the basic plane.
func escapeUnprintable(doc []byte) []byte {
	var out []byte
	for _, r := range string(doc) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// toYAML goes by way of JSON: names and omissions are the same, and fields keep their order.
func toYAML(v any) ([]byte, error) {
	doc, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var n yaml.Node
	// Where YAML's reader would stumble over a character, the escape is YAML's as well.
	if err := yaml.Unmarshal(escapeForYAML(doc), &n); err != nil {
		return nil, err
	}
	restyle(&n)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&n); err != nil {
		return nil, err
	}
	return escapeForYAML(b.Bytes()), nil
}

// restyle turns JSON's way of writing into YAML's, and keeps quotes where escapeForYAML needs them.
func restyle(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && !plain(n.Value) && n.Tag == "!!str" {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, c := range n.Content {
		restyle(c)
	}
}

// escapeForYAML is escapeUnprintable for text between double quotes in YAML, where one escape stands for any character.
func escapeForYAML(doc []byte) []byte {
	var out []byte
	for _, r := range string(doc) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out = utf8.AppendRune(out, r)
		default:
			out = fmt.Appendf(out, `\U%08x`, r)
		}
	}
	return out
}

func safe(s string) string { return escape.Text(s) }

func plain(s string) bool { return escape.Plain(s) }

// style is how a cell looks on a terminal, as a parameter of SGR (ECMA-48).
type style string

const (
	normal style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

func (s style) paint(text string) string {
	if s == normal || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

type cell struct {
	text  string
	style style
}

// text is a cell of what somebody else chose; nothing is shown as "-".
func text(s string) cell {
	if s == "" {
		return cell{text: "-", style: dim}
	}
	return cell{text: safe(s)}
}

func number[T int | int64 | uint32 | uint64](n T) cell { return cell{text: fmt.Sprint(n)} }

// alarm is a number that should be 0.
func alarm[T int | int64 | uint32 | uint64](n T, s style) cell {
	if n == 0 {
		return cell{text: "0"}
	}
	return cell{text: fmt.Sprint(n), style: s}
}

var none = cell{text: "-", style: dim}

// table is a table whose columns are lined up.
type table struct {
	titles []string
	right  map[int]bool // columns of numbers
	rows   [][]cell
	// empty stands in the place of a table without rows, footer below either.
	empty, footer string
}

func newTable(titles ...string) *table { return &table{titles: titles, right: map[int]bool{}} }

// numbers lines up columns at their right edge, by their titles.
func (t *table) numbers(titles ...string) *table {
	for i, title := range t.titles {
		for _, want := range titles {
			if title == want {
				t.right[i] = true
			}
		}
	}
	return t
}

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

// render writes the table for a terminal of that many columns, 0 for none: rows are as long as they are, what stands below is folded.
func (t *table) render(color bool, width int) []byte {
	var b bytes.Buffer
	t.footer = fold(t.footer, width)
	for _, line := range t.lines(color) {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func (t *table) lines(color bool) []string {
	if len(t.rows) == 0 {
		lines := []string{t.empty}
		if t.footer != "" {
			lines = append(lines, "", t.footer)
		}
		return lines
	}
	widths := make([]int, len(t.titles))
	for i, title := range t.titles {
		widths[i] = len(title)
	}
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], runewidth.StringWidth(c.text))
		}
	}
	head := make([]cell, len(t.titles))
	for i, title := range t.titles {
		head[i] = cell{text: title, style: bold}
	}
	lines := []string{t.line(head, widths, color)}
	for _, row := range t.rows {
		lines = append(lines, t.line(row, widths, color))
	}
	if t.footer != "" {
		lines = append(lines, "", t.footer)
	}
	return lines
}

func (t *table) line(row []cell, widths []int, color bool) string {
	var b strings.Builder
	for i, c := range row {
		blank := strings.Repeat(" ", widths[i]-runewidth.StringWidth(c.text))
		s := c.text
		if color {
			s = c.style.paint(s)
		}
		switch {
		case t.right[i]:
			b.WriteString(blank + s)
		case i == len(row)-1:
			b.WriteString(s) // nothing to line up, and no blanks at the end of a line
		default:
			b.WriteString(s + blank)
		}
		if i < len(row)-1 {
			b.WriteString("  ")
		}
	}
	return b.String()
}

// fold breaks lines between words so that they fit into width columns, 0 for any. The rest of an item ("- …") is indented as it is.
func fold(text string, width int) string {
	if width <= 0 {
		return text
	}
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		indent := ""
		if strings.HasPrefix(line, "- ") {
			indent = "  "
		}
		var cur string
		for i, word := range strings.Split(line, " ") {
			switch {
			case i == 0:
				cur = word
			case strings.TrimSpace(cur) != "-" && runewidth.StringWidth(cur)+1+runewidth.StringWidth(word) > width:
				out = append(out, cur)
				cur = indent + word
			default:
				cur += " " + word
			}
		}
		out = append(out, cur)
	}
	return strings.Join(out, "\n")
}

// duration is a length of time for people: the two largest units.
func duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

// terminal says whether out is a terminal, of how many columns (0: it does not say), and whether it is to have colours. NO_COLOR:
// https://no-color.org.
func terminal(out io.Writer) (tty, color bool, width int) {
	f, isFile := out.(*os.File)
	if !isFile {
		return false, false, 0
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return false, false, 0
	}
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
		width = int(size.Col)
	}
	return true, os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb", width
}
