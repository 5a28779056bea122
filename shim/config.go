package shim

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"
)

// Mode says what is done about the zombies of a container.
type Mode string

// The modes.
const (
	ModeAssist  Mode = "assist"  // PID 1 is made to reap proven orphans
	ModeInit    Mode = "init"    // reaper-init is the first process and reaps
	ModeObserve Mode = "observe" // zombies are counted and reported
	ModeOff     Mode = "off"     // nothing: plain runc behaviour
)

var modes = []Mode{ModeAssist, ModeInit, ModeObserve, ModeOff}

// Annotations of the OCI spec, each more specific than the option of the same name. Values have the same form.
const (
	AnnotationMode  = "io.containerd.reaper.mode"
	AnnotationGrace = "io.containerd.reaper.grace"
	// The next two are the only ones that can take a status from a PID 1 that still wants it.
	AnnotationReapUnproven = "io.containerd.reaper.reapUnproven"
	AnnotationReapOwn      = "io.containerd.reaper.reapOwn"

	annotationPrefix = "io.containerd.reaper."
)

// Config is how one task is treated.
type Config struct {
	Mode Mode
	// Grace is how long an orphan may stay a zombie before PID 1 is made to reap it.
	Grace time.Duration
	// ForkLog is the source of the evidence that PID 1 did, or did not, fork a zombie.
	ForkLog ForkLog
	// ReapUnproven and ReapOwn are ages from which zombies are reaped that are not proven to be orphans, or that PID 1 has
	// forked itself; 0: never.
	ReapUnproven, ReapOwn time.Duration
	// StatsInterval is the shortest time between two ZombieStats events of a task.
	StatsInterval time.Duration
	// Events: a TaskExit is published for each orphan that is reaped, and ZombieStats.
	Events bool
	// OrphanEventRate (per second) and OrphanEventBurst limit the TaskExit events of orphans of one task.
	OrphanEventRate  float64
	OrphanEventBurst int
}

// The defaults.
const (
	DefaultGrace            = time.Second
	DefaultStatsInterval    = 10 * time.Second
	DefaultOrphanEventRate  = 50
	DefaultOrphanEventBurst = 200
)

// mobyNamespace is Docker's. Its daemon subscribes to all of /tasks/ and turns each exit of an unknown exec into a public
// exec_die event with exit code 127 (moby, daemon/monitor.go), so events are off there unless asked for.
const mobyNamespace = "moby"

func defaultConfig(namespace string) Config {
	return Config{
		Mode:             ModeAssist,
		Grace:            DefaultGrace,
		ForkLog:          ForkLogAuto,
		StatsInterval:    DefaultStatsInterval,
		Events:           namespace != mobyNamespace,
		OrphanEventRate:  DefaultOrphanEventRate,
		OrphanEventBurst: DefaultOrphanEventBurst,
	}
}

// tomlOptions is the options table of the runtime in containerd's configuration: runc's options under their own names, and
// ours. Pointers tell what was set.
type tomlOptions struct {
	Mode             *string
	Grace            *string
	ForkLog          *string
	ReapUnproven     *string
	ReapOwn          *string
	StatsInterval    *string
	Events           *bool
	OrphanEventRate  *float64
	OrphanEventBurst *int64
	Grouping         *string

	NoPivotRoot   bool
	NoNewKeyring  bool
	ShimCgroup    string
	IoUid         uint32 //nolint:revive // the name in containerd's configuration
	IoGid         uint32 //nolint:revive // same
	BinaryName    string
	Root          string
	SystemdCgroup bool
	CriuImagePath string
	CriuWorkPath  string
	// CriuPath is accepted because configurations written for containerd 1.x have it; containerd 2 ignores it as well.
	CriuPath string

	// Of runtimeoptions.v1.Options, which containerd fills from the same table.
	TypeUrl    string //nolint:revive // the name in containerd's configuration
	ConfigPath string
}

// options are the decoded runtime options of a request.
type options struct {
	runc *runcoptions.Options // nil: the request had none
	toml tomlOptions
}

// silent reports whether the request leaves the cgroup driver open. So it is for a pod with a user namespace too where the handler has no
// options: containerd makes a runc message with the owner of the I/O and nothing else (its client, WithUIDOwner).
func (o options) silent() bool {
	if o.runc == nil {
		return true
	}
	owner := &runcoptions.Options{IoUid: o.runc.GetIoUid(), IoGid: o.runc.GetIoGid()}
	return o.toml == (tomlOptions{}) && (owner.GetIoUid() != 0 || owner.GetIoGid() != 0) && proto.Equal(o.runc, owner)
}

// decodeOptions understands the three forms in which options arrive: the generic runtimeoptions message (CRI), a runc
// message (ctr, Docker), or none (nerdctl). Errors wrap errdefs.ErrInvalidArgument.
func decodeOptions(opts typeurl.Any) (options, error) {
	if opts == nil || len(opts.GetValue()) == 0 && opts.GetTypeUrl() == "" {
		return options{}, nil
	}
	v, err := typeurl.UnmarshalAny(opts)
	if err != nil {
		return options{}, fmt.Errorf("decode runtime options of type %q: %w: %w", opts.GetTypeUrl(), err, errdefs.ErrInvalidArgument)
	}
	switch o := v.(type) {
	case *runcoptions.Options:
		return options{runc: o}, nil
	case *runtimeoptions.Options:
		return decodeGeneric(o)
	default:
		return options{}, fmt.Errorf("runtime options are a %q: want containerd.runc.v1.Options or runtimeoptions.v1.Options: %w",
			opts.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
}

func decodeGeneric(o *runtimeoptions.Options) (options, error) {
	body, from := o.GetConfigBody(), "runtime options"
	if path := o.GetConfigPath(); len(body) == 0 && path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return options{}, fmt.Errorf("read runtime options, ConfigPath %q: %w: %w", path, err, errdefs.ErrInvalidArgument)
		}
		body, from = data, path
	}
	var t tomlOptions
	dec := toml.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&t); err != nil {
		return options{}, fmt.Errorf("%s: %w: %w", from, explainTOML(err), errdefs.ErrInvalidArgument)
	}
	return options{
		toml: t,
		runc: &runcoptions.Options{
			NoPivotRoot:   t.NoPivotRoot,
			NoNewKeyring:  t.NoNewKeyring,
			ShimCgroup:    t.ShimCgroup,
			IoUid:         t.IoUid,
			IoGid:         t.IoGid,
			BinaryName:    t.BinaryName,
			Root:          t.Root,
			SystemdCgroup: t.SystemdCgroup,
			CriuImagePath: t.CriuImagePath,
			CriuWorkPath:  t.CriuWorkPath,
		},
	}, nil
}

// explainTOML names the keys that a strict decoder does not know; its own message only counts them.
func explainTOML(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var keys []string
		for _, e := range strict.Errors {
			keys = append(keys, strconv.Quote(strings.Join(e.Key(), ".")))
		}
		slices.Sort(keys)
		return fmt.Errorf("unknown option %s: want runc's options or one of mode, grace, forkLog, reapUnproven, reapOwn, "+
			"statsInterval, events, orphanEventRate, orphanEventBurst, grouping", strings.Join(slices.Compact(keys), ", "))
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, _ := decode.Position()
		return fmt.Errorf("line %d, option %q: %w", row, strings.Join(decode.Key(), "."), err)
	}
	return err
}

// configure makes the configuration of a task from its namespace, its runtime options and the annotations of its spec; the
// annotations win. Errors name the key, its value and what is allowed, and wrap errdefs.ErrInvalidArgument.
func configure(namespace string, o tomlOptions, annotations map[string]string) (Config, error) {
	c := defaultConfig(namespace)
	var errs []error
	check := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}

	if o.Mode != nil {
		check(setMode(&c.Mode, "option mode", *o.Mode))
	}
	if o.Grace != nil {
		check(setDuration(&c.Grace, "option grace", *o.Grace))
	}
	if o.ForkLog != nil {
		if c.ForkLog = ForkLog(*o.ForkLog); !slices.Contains(forkLogs, c.ForkLog) {
			check(fmt.Errorf("option forkLog = %s: want one of %v", quote(*o.ForkLog), forkLogs))
		}
	}
	if o.ReapUnproven != nil {
		check(setDuration(&c.ReapUnproven, "option reapUnproven", *o.ReapUnproven))
	}
	if o.ReapOwn != nil {
		check(setDuration(&c.ReapOwn, "option reapOwn", *o.ReapOwn))
	}
	if o.StatsInterval != nil {
		check(setDuration(&c.StatsInterval, "option statsInterval", *o.StatsInterval))
	}
	if o.Events != nil {
		c.Events = *o.Events
	}
	if o.OrphanEventRate != nil {
		if c.OrphanEventRate = *o.OrphanEventRate; !(c.OrphanEventRate >= 0 && c.OrphanEventRate <= maxEventRate) {
			check(fmt.Errorf("option orphanEventRate = %v: want a number from 0 to %d", *o.OrphanEventRate, maxEventRate))
		}
	}
	if o.OrphanEventBurst != nil {
		if *o.OrphanEventBurst < 0 || *o.OrphanEventBurst > maxEventRate {
			check(fmt.Errorf("option orphanEventBurst = %d: want a number from 0 to %d", *o.OrphanEventBurst, maxEventRate))
		}
		c.OrphanEventBurst = int(*o.OrphanEventBurst)
	}

	_, err := o.grouping()
	check(err)

	for key, value := range annotations {
		if !strings.HasPrefix(key, annotationPrefix) {
			continue
		}
		switch key {
		case AnnotationMode:
			check(setMode(&c.Mode, "annotation "+key, value))
		case AnnotationGrace:
			check(setDuration(&c.Grace, "annotation "+key, value))
		case AnnotationReapUnproven:
			check(setDuration(&c.ReapUnproven, "annotation "+key, value))
		case AnnotationReapOwn:
			check(setDuration(&c.ReapOwn, "annotation "+key, value))
		default:
			// Not an error: a pod written for a newer shim must still start on a node that is not upgraded yet.
			log.L.Warnf("annotation %s = %s is unknown to this version and ignored", quote(key), quote(value))
		}
	}
	if len(errs) > 0 {
		// One line: the message travels through logs, events and kubectl describe.
		slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		msgs := make([]string, len(errs))
		for i, err := range errs {
			msgs[i] = err.Error()
		}
		return Config{}, fmt.Errorf("%s: %w", strings.Join(msgs, "; "), errdefs.ErrInvalidArgument)
	}
	return c, nil
}

const (
	maxEventRate = 1_000_000
	// maxDuration keeps sums of times from overflowing.
	maxDuration = 10 * 365 * 24 * time.Hour
)

func setMode(dst *Mode, key, value string) error {
	if !slices.Contains(modes, Mode(value)) {
		return fmt.Errorf("%s = %s: want one of %v", key, quote(value), modes)
	}
	*dst = Mode(value)
	return nil
}

func setDuration(dst *time.Duration, key, value string) error {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d > maxDuration {
		return fmt.Errorf("%s = %s: want a duration from 0s to %s, such as 500ms, 1s or 2m", key, quote(value), maxDuration)
	}
	*dst = d
	return nil
}

// quote shows a value that somebody else chose, in one line and not at any length.
func quote(value string) string { return strconv.Quote(clip(value)) }

func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
