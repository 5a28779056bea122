// Package browser looks at pages with a headless Chromium.
package browser

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// ErrMissing is returned by Find where there is no Chromium.
var ErrMissing = errors.New("no chromium on PATH")

// Find returns the path of Chromium.
func Find() (string, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrMissing
}

// lookTimeout is for one page.
const lookTimeout = 30 * time.Second

// Browser is a running Chromium with one window. Its methods may not be called concurrently.
type Browser struct {
	ctx context.Context //nolint:containedctx // chromedp keeps the browser in it
	end context.CancelFunc

	mu       sync.Mutex
	problems []string
}

// Start starts one. The caller must Close it.
func Start(ctx context.Context) (*Browser, error) {
	path, err := Find()
	if err != nil {
		return nil, err
	}
	// Root has no sandbox to put it in.
	tab, end := chromedp.NewContext(ctx, chromedp.WithAllocatorOptions(chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU))
	b := &Browser{ctx: tab, end: end}
	if err := chromedp.Listen(tab, b.listen); err != nil {
		end()
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return b, nil
}

// Close ends the browser and waits for it.
func (b *Browser) Close() error {
	defer b.end()
	return chromedp.Cancel(b.ctx)
}

func (b *Browser) listen(event any) {
	var problem string
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		problem = e.ExceptionDetails.Text
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			problem = e.Entry.Text + " " + e.Entry.URL
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError {
			problem = "console.error"
		}
	default:
		return
	}
	if problem != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.problems = append(b.problems, problem)
	}
}

// Problems are the errors and warnings of all pages so far: exceptions, the console, resources that do not load or are not allowed.
func (b *Browser) Problems() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.problems...)
}

// View is how a page is looked at.
type View struct {
	Width int // of the window, in pixels
	Dark  bool
}

// Page is what is seen there.
type Page struct {
	Title   string
	Heading string
	Columns []string   // titles of the first table
	Rows    [][]string // text of its cells
	// Width is that of the document, TableWidth that of the first table, in pixels.
	Width, TableWidth int
	// PNG is a picture of the whole page.
	PNG []byte
}

// look returns a page's text and sizes.
const look = `(() => {
	const texts = (root, what) => [...root.querySelectorAll(what)].map(e => e.textContent);
	const table = document.querySelector('table');
	return {
		Title: document.title, Heading: texts(document, 'h1').join(' '),
		Columns: table ? texts(table, 'th') : [], Rows: table ? [...table.querySelectorAll('tbody tr')].map(r => texts(r, 'td')) : [],
		Width: document.documentElement.scrollWidth, TableWidth: table ? table.scrollWidth : 0,
	};
})()`

// Look opens a page.
func (b *Browser) Look(url string, v View) (Page, error) {
	ctx, cancel := context.WithTimeout(b.ctx, lookTimeout)
	defer cancel()
	scheme := "light"
	if v.Dark {
		scheme = "dark"
	}
	p, err := show(ctx, url, int64(v.Width), scheme)
	if err != nil {
		return Page{}, fmt.Errorf("look at %s: %w", url, err)
	}
	return p, nil
}

func show(ctx context.Context, url string, width int64, scheme string) (Page, error) {
	// A height that no page is lower than: the picture is as high as the page.
	size := emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 100, DeviceScaleFactor: 1}
	if _, err := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride, size); err != nil {
		return Page{}, err
	}
	media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
	if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, media); err != nil {
		return Page{}, err
	}
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		return Page{}, err
	}
	p, err := chromedp.Run(ctx, chromedp.Evaluate[Page](look))
	if err != nil {
		return Page{}, err
	}
	metrics, err := chromedp.Call(ctx, page.GetLayoutMetrics, cdp.Empty{})
	if err != nil {
		return Page{}, err
	}
	beyond := true
	shot, err := chromedp.Call(ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{
		Clip: &page.Viewport{Width: float64(width), Height: metrics.CSSContentSize.Height, Scale: 1}, CaptureBeyondViewport: &beyond,
	})
	p.PNG = shot.Data
	return p, err
}
