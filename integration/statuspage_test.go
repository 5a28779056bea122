package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reaper-shim/reaper/integration/browser"
	"github.com/reaper-shim/reaper/internal/testutil"
)

// TestStatusPage: the exporter's page in a browser shows a row for each container, without errors, and fits into the window of a desk
// and of a phone.
func TestStatusPage(t *testing.T) {
	d := daemon(t)
	runtime := reaper(t)
	if _, err := browser.Find(); err != nil {
		testutil.Lacks(t, err.Error(), "make deps-browser")
	}
	e := exporterOf(t, d)
	long := "page-" + strings.Repeat("long-name-", 6)
	kept := run(t, d, leaky(runtime, "page-kept", "assist", "1h"))
	exec(t, kept, "/bin/leak", "-n", "3")

	b, err := browser.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error("close the browser:", err)
		}
	}()
	for i, v := range []browser.View{{Width: 1280}, {Width: 400}, {Width: 1280, Dark: true}, {Width: 400, Dark: true}} {
		if i == 1 { // from here on the table is wider than any window
			run(t, d, leaky(runtime, long, "observe", "1s"))
		}
		t.Run(fmt.Sprintf("width %d, dark %v", v.Width, v.Dark), func(t *testing.T) {
			var p browser.Page
			row := func(name string) map[string]string {
				cells := make(map[string]string)
				for _, r := range p.Rows {
					for i, cell := range r {
						if i < len(p.Columns) && slices.Contains(r, name) {
							cells[p.Columns[i]] = cell
						}
					}
				}
				return cells
			}
			testutil.Eventually(t, 30*time.Second, func() (bool, string) {
				var err error
				p, err = b.Look(e.base+"/status", v)
				return err == nil && row("page-kept")["Adopted"] == "3" && (i == 0 || row(long)["Mode"] == "observe"), fmt.Sprint(err, p.Columns, p.Rows)
			})
			if p.Title == "" || !strings.Contains(p.Heading, "zombies in ") {
				t.Errorf("title %q, heading %q", p.Title, p.Heading)
			}
			if r := row(long); i > 0 && r["Adopted"] != "0" {
				t.Errorf("the other container: %v of %v", r, p.Rows)
			}
			if p.Width > v.Width {
				t.Errorf("the page is %d pixels wide", p.Width)
			}
			if i == 0 && p.TableWidth > v.Width {
				t.Errorf("the table is %d pixels wide, and has to be scrolled on a desk", p.TableWidth)
			}
			if len(p.PNG) == 0 {
				t.Error("no picture")
			}
		})
	}
	if problems := b.Problems(); len(problems) > 0 {
		t.Errorf("the browser complains: %q", problems)
	}
}
