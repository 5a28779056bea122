package tracer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// defaultDeadline bounds a Reap whose context has no deadline. The worker's own deadlines add up to less.
	defaultDeadline = 5 * time.Second
	// maxGiven is how many requests a worker is given: the one that it works at, and the next.
	maxGiven = 2
	// pipeSize holds what is written of them, and of their reports, with MaxZombies/2 zombies each: whoever writes need not wait for the other.
	pipeSize = 1 << 18
	// killGrace is how long a worker that has been told to end (end of its standard input) may take before it is
	// killed. Killing is the last resort: between the swap of a system call and its restoration it stops PID 1 until
	// another process has put things right. The worker gives up by itself long before.
	killGrace = 2 * time.Second
	// maxTries is how many workers may end before they answer a request.
	maxTries = 3
	// recoverPatience is for how long after Close it is tried to put right what a dead worker has left behind: until then for as long as it
	// takes, since a container can be frozen for days. recoverPause is the longest time between two tries.
	recoverPatience = time.Minute
	recoverPause    = 10 * time.Second
	// stderrWait is how long we look for the last words of a worker that is gone already.
	stderrWait = 50 * time.Millisecond
)

// ErrClosed is returned by Client.Reap after Client.Close.
var ErrClosed = errors.New("tracer client closed")

// Client has the requests of one caller carried out by a worker process, which it starts when the first request comes and
// again whenever the last one has ended. All methods may be called from any goroutine; requests are served one at a time, in the order in
// which they come. The worker is given the next one before it has answered, so that it need not wait for us, who may have to wait for a CPU.
type Client struct {
	path        string
	args        []string
	recoverArgs []string      // tests replace it
	patience    time.Duration // recoverPatience

	slots chan struct{} // holds one for each request that a worker has been given

	mu      sync.Mutex // guards what follows; taken only for moments
	w       *worker
	closed  chan struct{}  // closed by Close
	retired sync.WaitGroup // workers that are on their way out

	recovered atomic.Int64
	inFlight  atomic.Int64 // of these, with a swap in flight
}

// NewClient returns a client whose workers are started from the executable path with args. Nothing is started yet.
func NewClient(path string, args ...string) *Client {
	return &Client{
		path: path, args: args, recoverArgs: []string{"-recover"}, patience: recoverPatience,
		slots: make(chan struct{}, maxGiven), closed: make(chan struct{}),
	}
}

// Recovered returns how many workers have died in the middle of an attach, so that something had to be put back.
func (c *Client) Recovered() int64 { return c.recovered.Load() }

// WorkerPID returns the PID of the worker, or 0 if there is none: for callers that reap with wait4(-1) and want to know
// whose exit they saw.
func (c *Client) WorkerPID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.w == nil {
		return 0
	}
	return c.w.cmd.Process.Pid
}

// Reap has one request carried out. A declined request is a Report with a Reason, not an error: errors mean that the
// worker could not be started or spoken to, that the request is malformed, or that ctx ended (errors.Is the context's
// error). After an error nothing is known about the zombies: look at them again.
//
// When ctx ends first the worker is given time to let go of PID 1 in the background and is killed only then.
func (c *Client) Reap(ctx context.Context, req Request) (Report, error) {
	if req.Version == 0 {
		req.Version = Version
	}
	line, err := EncodeRequest(req)
	if err != nil {
		return Report{}, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultDeadline)
		defer cancel()
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return Report{}, fmt.Errorf("reap in pid %d: wait for an earlier request: %w", req.PID, ctx.Err())
	}

	// A worker that is still there may end by idleness while we write to it. The request is then untouched or can be
	// repeated without harm, since everything is checked anew; not for ever, for a new worker has hardly an excuse.
	for try := 1; ; try++ {
		w, err := c.worker()
		if err != nil {
			return Report{}, fmt.Errorf("reap in pid %d: %w", req.PID, err)
		}
		rep, err := w.ask(ctx, line)
		if err == nil {
			err = rep.answers(req)
		}
		if err == nil {
			if rep.Reason == ReasonTimeout {
				// It ends by itself now, and only that frees the thread that it could not stop. Waiting for it lets the
				// next request find PID 1 without a tracer.
				c.retire(w)
				select {
				case <-w.exited:
				case <-ctx.Done():
				}
			}
			rep.Repeated = try > 1
			return rep, nil
		}
		if cause := ctx.Err(); cause != nil {
			err = cause
		}
		c.retire(w)
		if isGone(err) {
			// PID 1 may stand still until what it has left behind is put back.
			select {
			case <-w.exited:
			case <-ctx.Done():
			}
		}
		if try < maxTries && ctx.Err() == nil && isGone(err) {
			continue
		}
		return Report{}, fmt.Errorf("reap in pid %d: worker: %w%s", req.PID, err, w.lastWords())
	}
}

// Close ends the worker and waits until it and all earlier ones are gone, which takes four seconds at worst, unless one of
// them has died in the middle of an attach to a process that is frozen.
func (c *Client) Close() error {
	c.mu.Lock()
	if !c.isClosed() {
		close(c.closed)
	}
	w := c.w
	c.mu.Unlock()
	if w != nil {
		c.retire(w)
	}
	c.retired.Wait()
	return nil
}

func (c *Client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// isGone reports whether err says that the worker had ended before it answered.
func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errPipe) || errors.Is(err, os.ErrClosed)
}

func (c *Client) worker() (w *worker, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed() {
		return nil, ErrClosed
	}
	if c.w != nil {
		select {
		case <-c.w.exited:
			c.retireLocked(c.w)
		default:
			return c.w, nil
		}
	}
	w, err = c.startWorker()
	if err != nil {
		return nil, err
	}
	c.w = w
	return w, nil
}

func (c *Client) retire(w *worker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retireLocked(w)
}

func (c *Client) retireLocked(w *worker) {
	if c.w == w {
		c.w = nil
	}
	if w.retiring {
		return
	}
	w.retiring = true
	c.retired.Go(w.end)
}

// worker is one worker process and our ends of its pipes.
type worker struct {
	cmd      *exec.Cmd
	stdin    *os.File
	stdout   *os.File
	stderr   *os.File
	journal  *Journal
	order    sync.Mutex         // of writing a request and of waiting for its report
	given    chan chan<- []byte // who waits for a report, in that order
	ended    chan struct{}      // closed when there will be no more reports
	why      error              // set then
	exited   chan struct{}      // closed when the process is gone and what it had left behind is put back
	once     sync.Once
	words    string // guarded by once
	retiring bool   // guarded by Client.mu
}

// startWorker starts the process. Pipes are made by hand: those of exec.Cmd would be closed by Wait, which has to run from
// the start, in parallel with our reading.
func (c *Client) startWorker() (*worker, error) {
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			f.Close()
		}
	}
	pipe := func() (r, w *os.File, err error) {
		if r, w, err = os.Pipe(); err == nil {
			files = append(files, r, w)
		}
		return r, w, err
	}
	stdinR, stdinW, err1 := pipe()
	stdoutR, stdoutW, err2 := pipe()
	stderrR, stderrW, err3 := pipe()
	if err := errors.Join(err1, err2, err3); err != nil {
		closeAll()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	file, err := newJournalFile()
	if err != nil {
		closeAll()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	files = append(files, file)
	journal, err := OpenJournal(int(file.Fd()))
	if err != nil {
		closeAll()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	cmd := c.command(c.args, file)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdinR, stdoutW, stderrW
	if err := cmd.Start(); err != nil {
		closeAll()
		_ = journal.Close()
		return nil, fmt.Errorf("start worker %s: %w", c.path, err)
	}
	stdinR.Close()
	stdoutW.Close()
	stderrW.Close()
	w := &worker{
		cmd: cmd, stdin: stdinW, stdout: stdoutR, stderr: stderrR,
		journal: journal,
		given:   make(chan chan<- []byte, maxGiven),
		ended:   make(chan struct{}),
		exited:  make(chan struct{}),
	}
	enlarge(stdinW)
	enlarge(stdoutR)
	go w.listen()
	go func() {
		// Who reaps it does not matter: in a shim that waits for all its children this is an ECHILD.
		_ = cmd.Wait()
		c.recover(journal, file)
		file.Close()
		close(w.exited)
	}()
	return w, nil
}

// command prepares the execution of the worker, with the journal as file descriptor 3.
func (c *Client) command(args []string, journal *os.File) *exec.Cmd {
	cmd := exec.Command(c.path, append(slices.Clone(args), "-journal", "3")...)
	cmd.Args[0] = WorkerName // the path may be a file descriptor's
	cmd.ExtraFiles = []*os.File{journal}
	cmd.Dir = "/"
	// A GODEBUG or GOMAXPROCS meant for us would change how it behaves. It works on one thread: with more processors the runtime wakes
	// others to look for work.
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = workerAttr()
	return cmd
}

// recover has put back what a dead worker has left behind, if anything.
func (c *Client) recover(journal *Journal, file *os.File) {
	if journal.phase() == phaseIdle || c.recoverArgs == nil {
		return
	}
	c.recovered.Add(1)
	if journal.page.pinned.Load() == 1 {
		c.inFlight.Add(1)
	}
	var end <-chan time.Time
	closed := c.closed
	for nap := time.Millisecond; journal.phase() != phaseIdle; nap = min(2*nap, recoverPause) {
		// Who reaps it does not matter, nor how it ends: the journal says whether it has done its work.
		if err := c.command(c.recoverArgs, file).Run(); err == nil {
			continue
		}
		if journal.phase() == phaseIdle {
			return
		}
		select {
		case <-closed:
			closed, end = nil, time.After(c.patience)
		case <-end:
			return
		case <-time.After(nap):
		}
	}
}

// ask sends one request and waits for its report.
func (w *worker) ask(ctx context.Context, line []byte) (Report, error) {
	mine := make(chan []byte, 1)
	if err := w.give(ctx, line, mine); err != nil {
		return Report{}, err
	}
	select {
	case answer := <-mine:
		return DecodeReport(answer)
	case <-ctx.Done():
		return Report{}, ctx.Err()
	case <-w.ended:
	}
	select {
	case answer := <-mine:
		return DecodeReport(answer)
	default:
		return Report{}, fmt.Errorf("read report: %w", w.why)
	}
}

// give sends one request, whose report goes to mine.
func (w *worker) give(ctx context.Context, line []byte, mine chan<- []byte) error {
	w.order.Lock()
	defer w.order.Unlock()
	select {
	case w.given <- mine:
	case <-w.ended:
		return fmt.Errorf("write request: %w", w.why)
	case <-ctx.Done():
		return ctx.Err()
	}
	deadline, _ := ctx.Deadline()
	_ = w.stdin.SetWriteDeadline(deadline) // its only error is that the pipe is closed, which the write will say
	if _, err := w.stdin.Write(line); err != nil {
		return deadlineError(fmt.Errorf("write request: %w", err))
	}
	return nil
}

// listen hands on the reports, until the worker ends or says what nobody has asked for.
func (w *worker) listen() {
	defer close(w.ended)
	in := bufio.NewReaderSize(w.stdout, maxLine)
	for {
		line, err := readLine(in)
		if err != nil {
			w.why = err
			return
		}
		select {
		case to := <-w.given:
			to <- bytes.Clone(line)
		default:
			w.why = fmt.Errorf("%w: a line that nobody has asked for", errProtocol)
			return
		}
	}
}

// deadlineError makes the pipe's deadline and the context's the same error: either may fire first.
func deadlineError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

// end closes the worker's standard input, which tells it to go, and waits; a worker that does not go is killed.
func (w *worker) end() {
	w.stdin.Close()
	timer := time.NewTimer(killGrace)
	defer timer.Stop()
	select {
	case <-w.exited:
	case <-timer.C:
		// Not in the middle of an attach, if it can be helped.
		for began := time.Now(); w.journal.phase() != phaseIdle && time.Since(began) < killGrace; {
			time.Sleep(time.Millisecond)
		}
		_ = w.cmd.Process.Kill() // by pidfd where the kernel has them, so that a reaped PID cannot be hit
		<-w.exited
	}
	_ = w.journal.Close()
	w.stdout.Close()
	w.lastWords()
	w.stderr.Close()
}

// lastWords returns what the worker wrote to its standard error, for the message of an error.
func (w *worker) lastWords() string {
	w.once.Do(func() {
		buf := make([]byte, 2048)
		_ = w.stderr.SetReadDeadline(time.Now().Add(stderrWait))
		if n, _ := io.ReadFull(w.stderr, buf); n > 0 {
			w.words = fmt.Sprintf(" (it said: %q)", buf[:n])
		}
	})
	return w.words
}
