// Package exporter is reaper-exporter: it asks the reaper shims of a node what they know of zombies, adds it up over the ends of
// containers, and serves it to Prometheus and on a page. See docs/exporter.md.
package exporter
