package main

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// serveCase is a server under load, with or without a leak below it.
type serveCase struct {
	Name    string        `json:"name"`
	Tini    bool          `json:"tini"` // is PID 1, and the server its child
	Leak    bool          `json:"leak"`
	Who     string        `json:"who,omitempty"` // has the orphans reaped; else PID 1 does, or nobody
	Samples []serveSample `json:"samples"`       // one for each round
}

type serveSample struct {
	Requests float64 `json:"requestsPerSecond"`
	P50US    float64 `json:"p50Micros"`
	P99US    float64 `json:"p99Micros"`
	Left     int     `json:"zombiesLeft"` // at the end of the load
	stops
}

const (
	serveQuiet     = "no leak"
	serveLeak      = "leak, nobody reaps"
	serveBatch     = "leak, " + whoBatch
	serveSingle    = "leak, " + whoSingle
	serveTiniQuiet = "no leak, tini is PID 1"
	serveTiniLeak  = "leak, tini is PID 1 and reaps"
)

func serveCases() []serveCase {
	return []serveCase{
		{Name: serveQuiet},
		{Name: serveLeak, Leak: true},
		{Name: serveBatch, Leak: true, Who: whoBatch},
		{Name: serveSingle, Leak: true, Who: whoSingle},
		{Name: serveTiniQuiet, Tini: true},
		{Name: serveTiniLeak, Tini: true, Leak: true},
	}
}

const (
	// serveGrace is the grace period of a default configuration.
	serveGrace = time.Second
	// settle lets a leak and its reaping get going before the load begins.
	settle = 1500 * time.Millisecond
	// connections of wrk: enough to keep the server at work.
	connections = 16
)

// serve loads a server that is bound to one CPU, from another CPU.
func (b *bench) serve(c *serveCase) (err error) {
	leak := 0
	if c.Leak {
		leak = b.rate
	}
	t, port, err := b.startServer(c.Tini, leak)
	if err != nil {
		return err
	}
	defer t.stop()
	r := newRecorder(b.worker)
	defer r.client.Close()
	end := func() error { return nil }
	switch c.Who {
	case whoBatch:
		end = background(batches, t, r, serveGrace)
	case whoSingle:
		end = background(eachAlone, t, r, serveGrace)
	}
	defer func() {
		if e := end(); err == nil {
			err = e
		}
	}()
	time.Sleep(settle)
	s, err := load(port, b.cpu-1, b.sample)
	if err != nil {
		return err
	}
	if s.Left, err = t.zombies(); err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	end = func() error { return nil }
	s.stops = r.stops
	c.Samples = append(c.Samples, s)
	return nil
}

// startServer starts a server that is bound to one CPU, with so many orphans a second leaked below it. The caller must stop it.
func (b *bench) startServer(underTini bool, leak int) (*target, int, error) {
	t, err := start(b.bin, underTini, b.cpu)
	if err != nil {
		return nil, 0, err
	}
	port, err := freePort()
	if err == nil {
		err = t.order("serve", port)
	}
	if err == nil && leak > 0 {
		err = t.order("leak", leak)
	}
	if err != nil {
		t.stop()
		return nil, 0, err
	}
	return t, port, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// load has wrk ask for as much as it gets.
func load(port, cpu int, d time.Duration) (serveSample, error) {
	out, err := exec.Command("taskset", wrkArgs(port, cpu, d)...).CombinedOutput()
	if err != nil {
		return serveSample{}, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	return parseWrk(string(out))
}

func wrkArgs(port, cpu int, d time.Duration) []string {
	return []string{"-c", fmt.Sprint(cpu), "wrk", "-t1", "-c", fmt.Sprint(connections), "-d", fmt.Sprintf("%ds", int(d.Seconds())),
		"--latency", fmt.Sprintf("http://127.0.0.1:%d/", port)}
}

// parseWrk reads the report of wrk --latency.
func parseWrk(out string) (s serveSample, err error) {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "Requests/sec:":
			s.Requests, err = strconv.ParseFloat(f[1], 64)
		case "50%":
			s.P50US, err = micros(f[1])
		case "99%":
			s.P99US, err = micros(f[1])
		case "Socket", "Non-2xx":
			err = errors.New(strings.TrimSpace(line))
		}
		if err != nil {
			return s, fmt.Errorf("wrk: %w", err)
		}
	}
	if s.Requests == 0 || s.P99US == 0 {
		return s, fmt.Errorf("wrk: no numbers in %q", out)
	}
	return s, nil
}

func micros(s string) (float64, error) {
	d, err := time.ParseDuration(s)
	return float64(d.Nanoseconds()) / 1000, err
}
