package termsvg

import (
	"encoding/xml"
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

func show(t *testing.T, text string) *Screen {
	t.Helper()
	s := NewScreen(40, 10)
	go func() { _, _ = io.Copy(io.Discard, s.Answers()) }()
	t.Cleanup(func() { _ = s.Close() })
	if _, err := s.Write([]byte(strings.ReplaceAll(text, "\n", "\r\n"))); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestText: what is read back from the picture is what was on the screen, column by column.
func TestText(t *testing.T) {
	for name, text := range map[string]string{
		"table":           "\x1b[1mNAME\x1b[0m   \x1b[1mMODE\x1b[0m      3\nweb    assist   12\n\n  end",
		"colours":         "\x1b[31mred\x1b[0m\x1b[32mgreen\x1b[0m one \x1b[2mtwo\x1b[0m",
		"markup":          `a <b> & "c" ]]> 'd'`,
		"wide characters": "日本  x\nab  y",
		"reverse":         "\x1b[7mchosen   line\x1b[0m",
	} {
		t.Run(name, func(t *testing.T) {
			s := show(t, text)
			want := s.Lines()
			got, err := Text(s.SVG("a title"))
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%q, %v; want %q", got, err, want)
			}
			var plain []string
			for line := range strings.SplitSeq(text, "\n") {
				for _, sequence := range []string{"\x1b[1m", "\x1b[0m", "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[7m"} {
					line = strings.ReplaceAll(line, sequence, "")
				}
				plain = append(plain, line)
			}
			if !slices.Equal(want, plain) {
				t.Errorf("on the screen: %q, want %q", want, plain)
			}
		})
	}
}

// TestRedrawn: what was written over is not in the picture.
func TestRedrawn(t *testing.T) {
	s := show(t, "10 zombies\r\x1b[K9 zombies\n\x1b[?1049h\x1b[2J\x1b[Hother screen\x1b[?1049l")
	if got := s.Lines(); !slices.Equal(got, []string{"9 zombies"}) {
		t.Errorf("%q", got)
	}
}

// TestClasses: each run has the look that the program gave it, and is well-formed XML.
func TestClasses(t *testing.T) {
	svg := show(t, "\x1b[1mT\x1b[0m \x1b[33m3\x1b[0m \x1b[2m-\x1b[0m\n\x1b[7mrow \x1b[0m").SVG("<&>")
	var doc struct {
		Title string `xml:"title"`
		Rects []struct {
			Width float64 `xml:"width,attr"`
		} `xml:"rect"`
		Texts []struct {
			Class string `xml:"class,attr"`
			Text  string `xml:",chardata"`
		} `xml:"text"`
	}
	if err := xml.Unmarshal(svg, &doc); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, text := range doc.Texts {
		got = append(got, text.Class+":"+text.Text)
	}
	want := []string{"bold:T", "y:3", "dim:-", "reverse:row "}
	if !slices.Equal(got, want) || doc.Title != "<&>" {
		t.Errorf("%q, title %q; want %q", got, doc.Title, want)
	}
	if len(doc.Rects) != 2 || math.Abs(doc.Rects[1].Width-4*cellWidth) > .1 {
		t.Errorf("rectangles %v: want the paper and one below the reversed row", doc.Rects)
	}
}

// TestContrast: every colour can be read on its paper.
func TestContrast(t *testing.T) {
	const least = 4.5
	for theme := range paper {
		for _, ink := range inks {
			c := ink.light
			if theme == 1 {
				c = ink.dark
			}
			if ratio := contrast(c, paper[theme]); ratio < least {
				t.Errorf("theme %d: %s has a contrast of %.1f, want %v", theme, ink.name, ratio, least)
			}
		}
		if ratio := contrast(text[theme], paper[theme]); ratio < least {
			t.Errorf("theme %d: text has a contrast of %.1f", theme, ratio)
		}
	}
}

// contrast is the ratio of WCAG 2.
func contrast(a, b color.RGBA) float64 {
	luminance := func(c color.RGBA) float64 {
		linear := func(v uint8) float64 {
			f := float64(v) / 255
			if f <= 0.04045 {
				return f / 12.92
			}
			return math.Pow((f+0.055)/1.055, 2.4)
		}
		return 0.2126*linear(c.R) + 0.7152*linear(c.G) + 0.0722*linear(c.B)
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func ExampleText() {
	s := NewScreen(20, 2)
	_, _ = s.Write([]byte("$ \x1b[1mreaperctl\x1b[0m ps"))
	lines, err := Text(s.SVG("ps"))
	fmt.Println(lines, err)
	// Output: [$ reaperctl ps] <nil>
}
