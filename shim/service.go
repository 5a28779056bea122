package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runctask "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ctrdshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs/pkg/errgrpc"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/reaper-shim/reaper/internal/program"
	"github.com/reaper-shim/reaper/runtime/lineage/forklog"
	"github.com/reaper-shim/reaper/runtime/procfs"
	"github.com/reaper-shim/reaper/runtime/sweep"
	"github.com/reaper-shim/reaper/runtime/tracer"
	"github.com/reaper-shim/reaper/shim/api"
)

// service is containerd's task service with eyes for zombies. What it does not override goes to the wrapped service.
type service struct {
	taskapi.TTRPCTaskService

	namespace string // containerd's
	proc      *procfs.FS
	hostNS    uint64 // inode of the shim's PID namespace
	events    *eventPublisher
	children  *children
	spans     *spans // nil: off
	// tracer is nil where there is none; tracerReason then says why.
	tracer       *tracer.Client
	tracerReason string
	// tracerFile keeps the executable that fits this shim, whatever an upgrade puts in its place.
	tracerFile *os.File
	group      *group // nil where this is the shim of one pod

	mu       sync.Mutex
	tasks    map[string]*task    // by container ID
	watchers map[uint64]*watcher // by inode of the PID namespace; of several with one number, the last
	trim     *time.Timer         // see trimSoon

	processors int // that containerd wants a shim to use at most
}

// containersPerProcessor is how many containers are watched before a shim takes another processor: a pod has fewer.
const containersPerProcessor = 16

// fit takes as many processors as the containers need. Nearly all that a shim does is wait, and with a second processor Go's
// scheduler wakes a second thread, which looks in vain for work, whenever the first begins any. s.mu is held, or nobody else has s.
func (s *service) fit() {
	goruntime.GOMAXPROCS(min(1+len(s.tasks)/containersPerProcessor, s.processors)) // does nothing where that is so already
}

func newService(ctx context.Context, address string, publisher ctrdshim.Publisher, sd shutdown.Service, sp *spans) (*service, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	inner, err := runctask.NewTaskService(ctx, publisher, sd)
	if err != nil {
		return nil, err
	}
	events, err := newEventPublisher(namespace, address)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd's events: %w", err)
	}
	s := &service{
		TTRPCTaskService: inner,
		namespace:        namespace,
		proc:             procfs.New(os.DirFS("/proc")),
		events:           events,
		spans:            sp,
		tasks:            make(map[string]*task),
		watchers:         make(map[uint64]*watcher),
	}
	if s.hostNS, err = s.proc.PIDNamespace(procfs.HostPID(os.Getpid())); err != nil {
		return nil, fmt.Errorf("find the shim's own PID namespace: %w", err)
	}
	if s.group, err = currentGroup(); err != nil {
		return nil, fmt.Errorf("find out whose shim this is: %w", err)
	}
	s.findTracer()
	s.processors = goruntime.GOMAXPROCS(0)
	s.fit()
	s.children = newChildren(s)
	runc.Monitor = monitor{s.children}
	go s.children.run()
	sd.RegisterCallback(func(context.Context) error { s.close(); return nil })
	return s, nil
}

// findTracer looks for the tracer. Without one tasks start all the same, and zombies are only observed.
func (s *service) findTracer() {
	self, err := os.Executable()
	if err == nil {
		var path string
		if path, err = program.Find(self, tracer.WorkerName); err == nil {
			if reason := tracer.Supported(); reason == "" {
				if s.tracerFile, err = os.Open(path); err == nil {
					// By the shim's number: what "self" has under this descriptor changes between fork and exec.
					s.tracer = tracer.NewClient(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.tracerFile.Fd()))
					return
				}
			} else {
				err = fmt.Errorf("reaper-tracer: %s", reason)
			}
		}
	}
	s.tracerReason = err.Error()
	log.L.WithError(err).Warn("no tracer: zombies will be observed and not reaped")
}

// RegisterTTRPC registers this service, and not the wrapped one, for both versions of the task API, and the Reaper service
// beside it.
func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	registerTaskV2(server, s)
	api.RegisterReaperService(server, reaperService{s})
	return nil
}

// Create makes the container. The only thing that fails here and would not with runc is a bad option or annotation.
func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	resp, err := s.create(ctx, r)
	if err != nil && s.group != nil && s.task(r.ID) == nil {
		_ = os.Remove(s.group.member(r.ID))
	}
	return resp, err
}

func (s *service) create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	cfg, sp, err := s.prepare(r)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("create %s: %w", r.ID, err))
	}
	t := newTask(r.ID, cfg)
	t.bundle = r.Bundle
	if cfg.Mode == ModeInit {
		var reason string
		if t.reportDir, reason, err = insertInit(ctx, r, sp); err != nil {
			return nil, errgrpc.ToGRPC(fmt.Errorf("create %s: %w", r.ID, err))
		}
		if reason != "" {
			log.L.WithField("id", r.ID).Infof("mode %s: left alone: %s", ModeInit, reason)
			t.fallBack(ModeAssist, reason)
		}
	}
	if mode, _ := t.effective(); mode == ModeAssist && s.tracer == nil {
		t.fallBack(ModeObserve, s.tracerReason)
	}

	end := s.children.begin(r.ID)
	resp, err := s.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		end(0)
		return nil, err
	}
	if resp.Pid > 0 {
		s.identify(t, int(resp.Pid), false)
	}
	s.mu.Lock()
	s.tasks[r.ID] = t
	s.followLog()
	s.fit()
	s.mu.Unlock()
	end(int(resp.Pid))
	return resp, nil
}

// prepare decides how the task is to be treated and rewrites its options into the form that the wrapped service expects.
func (s *service) prepare(r *taskapi.CreateTaskRequest) (Config, *spec, error) {
	var opts options
	if r.Options != nil {
		var err error
		if opts, err = decodeOptions(r.Options); err != nil {
			return Config{}, nil, err
		}
	}
	sp, err := readSpec(r.Bundle)
	if err != nil {
		return Config{}, nil, err
	}
	cfg, err := configure(s.namespace, opts.toml, sp.Annotations)
	if err != nil {
		return Config{}, nil, err
	}
	if opts.silent() && sp.systemdCgroup() {
		if opts.runc == nil {
			opts.runc = &runcoptions.Options{}
		}
		opts.runc.SystemdCgroup = true
	}
	if opts.runc != nil {
		if r.Options, err = runcAny(opts.runc); err != nil {
			return Config{}, nil, err
		}
	}
	return cfg, sp, nil
}

func runcAny(o *runcoptions.Options) (*anypb.Any, error) {
	msg, err := typeurl.MarshalAnyToProto(o)
	if err != nil {
		return nil, fmt.Errorf("encode runc options: %w", err)
	}
	return msg, nil
}

// identify notes who the init process of a task is. Where it cannot be read the task runs on, unwatched.
func (s *service) identify(t *task, pid int, started bool) {
	if mode, _ := t.effective(); mode == ModeOff {
		return
	}
	p, err := identify(s.proc, procfs.HostPID(pid), started)
	if err != nil {
		t.fallBack(ModeOff, err.Error())
		log.L.WithField("id", t.id).WithError(err).Warn("cannot watch the task for zombies")
		return
	}
	mode, _ := t.effective()
	if p.ownsNS {
		policy := t.cfg.ForkLog
		if mode == ModeInit {
			policy = ForkLogOff // nothing is reaped on its word
		}
		p.forks = openForks(t.id, p.pid, p.startTime, policy, !started, time.Now())
	}
	t.process = p
	if mode == ModeInit {
		// Without reports the orphans are reaped all the same.
		if t.reports, err = s.listenReports(t, t.reportDir); err != nil {
			log.L.WithField("id", t.id).WithError(err).Warn("orphans will not be reported")
		}
	}
	if t.namespace == s.hostNS {
		s.children.add(t)
	}
}

// Start starts the container or an exec.
func (s *service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	end := s.children.begin(r.ID)
	resp, err := s.TTRPCTaskService.Start(ctx, r)
	if err != nil {
		end(0)
		return nil, err
	}
	if r.ExecID == "" {
		s.trimSoon()
	}
	if t := s.task(r.ID); t != nil && r.ExecID == "" {
		if t.pid == 0 {
			t = s.restored(t, int(resp.Pid))
		}
		s.watch(t)
	} else if t != nil {
		if w := s.watcherOf(t); w != nil {
			w.kick() // PID 1 is alone no longer
		}
	}
	end(int(resp.Pid))
	return resp, nil
}

// restored replaces a task that is restored from a checkpoint, and whose process exists only now, by one that knows it: others may be
// looking at the first one.
func (s *service) restored(old *task, pid int) *task {
	t := newTask(old.id, old.cfg)
	t.bundle, t.reportDir = old.bundle, old.reportDir
	t.fallBack(old.effective())
	s.identify(t, pid, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[t.id] = t
	return t
}

func (s *service) task(id string) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[id]
}

// watch begins to sweep the PID namespace of a task, or adds the task to those in it.
func (s *service) watch(t *task) {
	mode, _ := t.effective()
	if mode == ModeOff || t.namespace == s.hostNS {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !t.ownsNS {
		if w := s.watchers[t.namespace]; w != nil && s.lives(w.owner) {
			w.join(t)
			t.watcher = w
			return
		}
		if mode == ModeInit {
			return // its orphans do not come to PID 1
		}
		// What is done about PID 1 of this namespace is decided where it belongs.
		t.fallBack(ModeObserve, "the PID namespace belongs to a task of another shim, or to one in mode off")
		return
	}
	var r sweep.Reaper
	if mode == ModeAssist {
		r = s.spans.reaper(s.tracer, t.id)
	}
	w, err := s.startWatcher(t, r)
	if errors.Is(err, procfs.ErrVanished) {
		return // it is over already
	}
	if err != nil {
		log.L.WithField("id", t.id).WithError(err).Warn("cannot watch the task for zombies")
		return
	}
	// If there is one already, its namespace has ended: numbers of namespaces are used again at once.
	s.watchers[t.namespace], t.watcher = w, w
}

// lives reports whether the init process of a task is still there.
func (s *service) lives(t *task) bool {
	st, err := s.proc.Stat(t.pid)
	return err == nil && st.StartTime == t.startTime && !st.Zombie()
}

// watcherOf returns the watcher of the task's PID namespace, nil when there is none.
func (s *service) watcherOf(t *task) *watcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.watcher
}

// Delete removes the container, or an exec.
func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	if err == nil && r.ExecID == "" {
		s.forget(r.ID)
	}
	return resp, err
}

// followLog keeps the log of a group that of a bundle that still exists. Called with s.mu held, when s.tasks has changed.
func (s *service) followLog() {
	if s.group == nil {
		return
	}
	for _, t := range s.tasks {
		if t.bundle == s.group.log {
			return
		}
	}
	for _, t := range s.tasks {
		if s.group.logTo(t.bundle); s.group.log == t.bundle {
			return
		}
	}
}

// Shutdown ends the shim if it has no tasks left. That of a group waits for those that have been sent to it as well, and takes its
// socket away first: whoever starts next must not find it.
func (s *service) Shutdown(ctx context.Context, r *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	if s.group == nil {
		return s.TTRPCTaskService.Shutdown(ctx, r)
	}
	unlock, err := s.group.lock()
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("shut down: %w", err))
	}
	defer unlock()
	s.mu.Lock()
	busy := len(s.tasks) > 0
	s.mu.Unlock()
	if busy {
		return &emptypb.Empty{}, nil
	}
	if wait := s.group.announced(time.Now()); wait > 0 {
		time.AfterFunc(wait, func() { _, _ = s.Shutdown(context.WithoutCancel(ctx), r) })
		return &emptypb.Empty{}, nil
	}
	name := filepath.Join(s.group.dir, addressFile)
	if address, err := os.ReadFile(name); err == nil {
		_ = ctrdshim.RemoveSocket(string(address))
		_ = os.Remove(name)
	}
	// What containerd's code does at the very end looks for an address where it is: by then the next shim's can be there.
	if err := os.Chdir("/"); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("shut down: %w", err))
	}
	return s.TTRPCTaskService.Shutdown(ctx, r)
}

// forget ends all that is kept about a task and publishes its last statistics.
func (s *service) forget(id string) {
	s.mu.Lock()
	t := s.tasks[id]
	delete(s.tasks, id)
	s.fit()
	if t == nil {
		s.mu.Unlock()
		return
	}
	if s.group != nil {
		_ = os.Remove(s.group.member(id))
	}
	s.followLog()
	if mode, _ := t.effective(); mode == ModeOff {
		s.mu.Unlock()
		return
	}
	w := t.watcher
	owner := w != nil && w.owner == t
	if owner && s.watchers[t.namespace] == w {
		delete(s.watchers, t.namespace)
	}
	s.mu.Unlock()

	t.reports.finish()
	var (
		stats sweep.Stats
		forks forklog.Stats
	)
	switch {
	case owner:
		w.end()
		stats, forks = w.snapshot()
		// They died with their PID 1.
		stats.Own, stats.Adopted, stats.Unproven, stats.Held, stats.Holders, stats.Oldest = 0, 0, 0, 0, nil, 0
	case w != nil:
		w.leave(t)
	case t.forks != nil:
		t.forks.close() // created, and never started or watched
	}
	s.children.remove(t)
	s.publishStats(t, t.message(stats, forks, true))
}

// Pause freezes the container; its PID namespace is not swept until it is resumed.
func (s *service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	var w *watcher
	t := s.task(r.ID)
	if t != nil {
		w = s.watcherOf(t)
	}
	if w == nil {
		return s.TTRPCTaskService.Pause(ctx, r)
	}
	was := w.pause(t)
	w.gate.Lock() // until what is under way has ended
	defer w.gate.Unlock()
	resp, err := s.TTRPCTaskService.Pause(ctx, r)
	if err != nil && !was {
		w.resume(t)
	}
	return resp, err
}

// Resume thaws the container.
func (s *service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	resp, err := s.TTRPCTaskService.Resume(ctx, r)
	if t := s.task(r.ID); err == nil && t != nil {
		if w := s.watcherOf(t); w != nil {
			w.resume(t)
		}
	}
	return resp, err
}

// kickAll asks for a sweep of every namespace: a child of the shim other than a runc command has died, and if it was an exec it
// may have left orphans.
func (s *service) kickAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.watchers {
		w.kick()
	}
}

func (s *service) closeWatchers() {
	s.mu.Lock()
	var watchers []*watcher
	for _, t := range s.tasks {
		if t.watcher != nil && t.watcher.owner == t {
			watchers = append(watchers, t.watcher)
		}
	}
	s.mu.Unlock()
	for _, w := range watchers {
		w.end()
	}
}

// close ends everything of ours when the shim shuts down.
func (s *service) close() {
	s.closeWatchers()
	if s.tracer != nil {
		if err := s.tracer.Close(); err != nil {
			log.L.WithError(err).Debug("close the tracer")
		}
	}
	s.events.close()
}
