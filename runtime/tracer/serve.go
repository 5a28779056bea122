package tracer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/metrics"
	"time"
)

// DefaultIdle is how long a worker without work stays.
const DefaultIdle = 5 * time.Second

// ErrStuck is returned by [Serve] after it has reported a thread that did not stop in time: the process must end, since
// nothing else frees that thread.
var ErrStuck = errors.New("a thread did not stop in time; only the end of this process lets go of it")

// collectAfter is how much is allocated before memory is collected: between requests, since a collection wakes threads by the dozen,
// and not after each, for that is more than an attach costs.
const collectAfter = 2 << 20

// Serve carries out the requests that come on in, one line each, and writes one report line for each to out. It returns
// nil when in ends or when no request has come for idle (0: DefaultIdle), else what went wrong: ErrStuck, a malformed
// request, a failed write. It must be called on a locked OS thread (runtime.LockOSThread): a ptrace relation belongs to a
// thread, not to a process. All that it does is done on that thread, for handing over to another one wakes it.
//
// What has to be put back if the process dies is written to journal; without one, nobody does.
func Serve(in, out *os.File, idle time.Duration, journal *Journal) error {
	return serve(in, out, idle, archOptions(journal))
}

func serve(in, out *os.File, idle time.Duration, opts options) error {
	if idle <= 0 {
		idle = DefaultIdle
	}
	fd := int(in.Fd()) // blocking from here on
	r := bufio.NewReaderSize(in, maxLine)
	e := newExecutor(opts)
	defer e.close()
	kept := allocated()
	for {
		if r.Buffered() == 0 {
			if come, err := awaitInput(fd, idle); err != nil {
				return fmt.Errorf("wait for a request: %w", err)
			} else if !come {
				return nil
			}
		}
		line, err := readLine(r)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		req, err := DecodeRequest(line)
		if err != nil {
			return err
		}
		rep := e.perform(req)
		if line, err = EncodeReport(rep); err != nil {
			return err
		}
		if _, err := out.Write(line); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
		if rep.Reason == ReasonTimeout {
			return ErrStuck
		}
		if now := allocated(); now-kept >= collectAfter {
			runtime.GC() // now, rather than while the next process stands still
			kept = now
		}
	}
}

// allocated returns how many bytes have been allocated so far.
func allocated() uint64 {
	sample := [1]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample[:])
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
