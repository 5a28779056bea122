package tracer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"
)

// DefaultIdle is how long a worker without work stays.
const DefaultIdle = 5 * time.Second

// ErrStuck is returned by [Serve] after it has reported a thread that did not stop in time: the process must end, since
// nothing else frees that thread.
var ErrStuck = errors.New("a thread did not stop in time; only the end of this process lets go of it")

// Serve carries out the requests that come on in, one line each, and writes one report line for each to out. It returns
// nil when in ends or when no request has come for idle (0: DefaultIdle), else what went wrong: ErrStuck, a malformed
// request, a failed write. It must be called on a locked OS thread (runtime.LockOSThread): a ptrace relation belongs to a
// thread, not to a process.
//
// What has to be put back if the process dies is written to journal; without one, nobody does.
func Serve(in io.Reader, out io.Writer, idle time.Duration, journal *Journal) error {
	return serve(in, out, idle, archOptions(journal))
}

func serve(in io.Reader, out io.Writer, idle time.Duration, opts options) error {
	if idle <= 0 {
		idle = DefaultIdle
	}
	type input struct {
		line []byte
		err  error
	}
	lines := make(chan input)
	next := make(chan struct{}, 1)
	done := make(chan struct{})
	defer close(done)
	go func() {
		r := bufio.NewReaderSize(in, maxLine)
		for {
			// One line at a time: the buffer belongs to the server until it asks for the next.
			select {
			case <-next:
			case <-done:
				return
			}
			line, err := readLine(r)
			select {
			case lines <- input{line, err}:
			case <-done:
				return
			}
		}
	}()
	e := newExecutor(opts)
	defer e.close()
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		next <- struct{}{}
		timer.Reset(idle)
		var got input
		select {
		case got = <-lines:
		case <-timer.C:
			return nil
		}
		if got.err != nil {
			if errors.Is(got.err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read request: %w", got.err)
		}
		req, err := DecodeRequest(got.line)
		if err != nil {
			return err
		}
		rep := e.perform(req)
		line, err := EncodeReport(rep)
		if err != nil {
			return err
		}
		if _, err := out.Write(line); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
		if rep.Reason == ReasonTimeout {
			return ErrStuck
		}
		runtime.GC() // now, rather than while the next process stands still
	}
}
