package exporter

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/exporter-toolkit/web"
)

const (
	metricsPath = "/metrics"
	statusPath  = "/status"

	// scrapeTimeout is for a scraper that does not say how long it waits (Prometheus' own default, scrape_timeout), and
	// scrapeReserve is what is left of that time for the answer.
	scrapeTimeout = 10 * time.Second
	scrapeReserve = 500 * time.Millisecond
	// timeoutHeader is how Prometheus says it (scrape/scrape.go, scrapeTimeoutHeader).
	timeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"
)

// registry returns the exporter's metrics, and those of the program itself.
func (e *exporter) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(e, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector())
	return r
}

// handler serves the metrics, the page and the way to both.
func (e *exporter) handler(version string) (http.Handler, error) {
	landing, err := web.NewLandingPage(web.LandingConfig{
		Name: "reaper-exporter", Description: "Zombies of this node's containers", Version: version, Profiling: "false",
		Links: []web.LandingLinks{
			{Address: metricsPath, Text: "Metrics", Description: "for Prometheus"},
			{Address: statusPath, Text: "Status", Description: "the containers of this node"},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make the landing page: %w", err)
	}
	registry := e.registry()
	metrics := promhttp.InstrumentMetricHandler(registry, promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux := http.NewServeMux()
	mux.Handle("/", landing)
	mux.Handle("GET "+metricsPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.refresh(r)
		metrics.ServeHTTP(w, r)
	}))
	mux.Handle("GET "+statusPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.refresh(r)
		e.status(w)
	}))
	return mux, nil
}

// refresh looks within the time that the client has. What cannot be found out the answer says (reaper_up, reaper_tasks).
func (e *exporter) refresh(r *http.Request) {
	if e.recent() {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeFor(r.Header.Get(timeoutHeader)))
	defer cancel()
	if _, _, err := e.look(ctx); err != nil {
		e.cfg.log.Debug("ask the node", "err", err)
	}
}

// timeFor is how long an answer may take whose client waits for so many seconds.
func timeFor(header string) time.Duration {
	d := scrapeTimeout
	if s, err := strconv.ParseFloat(header, 64); err == nil && s > 0 && s < time.Hour.Seconds() {
		d = time.Duration(s * float64(time.Second))
	}
	return max(d-scrapeReserve, d/2)
}
