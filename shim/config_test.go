package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

func generic(body string) *runtimeoptions.Options {
	return &runtimeoptions.Options{ConfigBody: []byte(body)}
}

func TestDecodeOptions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "options.toml")
	if err := os.WriteFile(file, []byte("SystemdCgroup = true\nmode = 'off'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		msg      any // nil: no options
		wantRunc *runcoptions.Options
		wantMode string
	}{
		{"none, as from nerdctl", nil, nil, ""},
		{"a runc message, as from ctr", &runcoptions.Options{BinaryName: "crun", SystemdCgroup: true},
			&runcoptions.Options{BinaryName: "crun", SystemdCgroup: true}, ""},
		{"an empty table, as from CRI", generic(""), &runcoptions.Options{}, ""},
		{"runc's options and ours in one table", generic(`
			BinaryName = "/usr/bin/crun"
			CriuImagePath = "/ci"
			CriuPath = "/gone"
			CriuWorkPath = "/cw"
			IoGid = 5
			IoUid = 4
			NoNewKeyring = true
			NoPivotRoot = true
			Root = "/run/r"
			ShimCgroup = "/shims"
			SystemdCgroup = true
			mode = "observe"
			`),
			&runcoptions.Options{BinaryName: "/usr/bin/crun", CriuImagePath: "/ci", CriuWorkPath: "/cw", IoGid: 5, IoUid: 4,
				NoNewKeyring: true, NoPivotRoot: true, Root: "/run/r", ShimCgroup: "/shims", SystemdCgroup: true}, "observe"},
		{"a file", &runtimeoptions.Options{ConfigPath: file}, &runcoptions.Options{SystemdCgroup: true}, "off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var msg typeurl.Any
			if tt.msg != nil {
				var err error
				if msg, err = typeurl.MarshalAny(tt.msg); err != nil {
					t.Fatal(err)
				}
			}
			got, err := decodeOptions(msg)
			if err != nil {
				t.Fatal(err)
			}
			if (got.runc == nil) != (tt.wantRunc == nil) || got.runc != nil && !proto.Equal(got.runc, tt.wantRunc) {
				t.Errorf("runc options %v, want %v", got.runc, tt.wantRunc)
			}
			mode := ""
			if got.toml.Mode != nil {
				mode = *got.toml.Mode
			}
			if mode != tt.wantMode {
				t.Errorf("mode %q, want %q", mode, tt.wantMode)
			}
		})
	}
}

func TestDecodeOptionsRejects(t *testing.T) {
	for name, tt := range map[string]struct {
		msg  any
		want []string // in the message
	}{
		"an unknown key":      {generic(`mod = "off"`), []string{`"mod"`, "want", "mode"}},
		"a nested table":      {generic("[x]\ny = 1"), []string{`"x`}},
		"a wrong type":        {generic(`SystemdCgroup = "yes"`), []string{"SystemdCgroup", "line 1"}},
		"no TOML":             {generic(`mode = `), []string{"line 1"}},
		"a missing file":      {&runtimeoptions.Options{ConfigPath: "/nowhere/x.toml"}, []string{"ConfigPath", "/nowhere/x.toml"}},
		"some other message":  {&emptypb.Empty{}, []string{"google.protobuf.Empty", "containerd.runc.v1.Options"}},
		"a mode not a string": {generic(`mode = 3`), []string{"mode"}},
	} {
		t.Run(name, func(t *testing.T) {
			msg, err := typeurl.MarshalAny(tt.msg)
			if err != nil {
				t.Fatal(err)
			}
			_, err = decodeOptions(msg)
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("got %v, want an invalid argument", err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("message %q does not say %q", err, part)
				}
			}
		})
	}
}

func table(t *testing.T, body string) tomlOptions {
	t.Helper()
	o, err := decodeGeneric(generic(body))
	if err != nil {
		t.Fatal(err)
	}
	return o.toml
}

func TestConfigure(t *testing.T) {
	tests := []struct {
		name        string
		namespace   string
		options     string
		annotations map[string]string
		want        func(*Config)
	}{
		{"defaults", "k8s.io", "", nil, func(*Config) {}},
		{"options", "k8s.io", `
			mode = "observe"
			grace = "5s"
			forkLog = "connector"
			reapUnproven = "1h"
			reapOwn = "2h"
			statsInterval = "1m"
			events = false
			orphanEventRate = 2.5
			orphanEventBurst = 7`, nil,
			func(c *Config) {
				*c = Config{Mode: ModeObserve, ForkLog: ForkLogConnector, ReapUnproven: time.Hour, ReapOwn: 2 * time.Hour, Grace: 5 * time.Second, StatsInterval: time.Minute, OrphanEventRate: 2.5, OrphanEventBurst: 7}
			}},
		{"annotations win", "k8s.io", "mode = 'off'\ngrace = '5s'",
			map[string]string{AnnotationMode: "assist", AnnotationGrace: "0s", "io.kubernetes.cri.sandbox-id": "x"},
			func(c *Config) { c.Grace = 0 }},
		{"the dangerous two", "k8s.io", "", map[string]string{AnnotationReapUnproven: "1m", AnnotationReapOwn: "10m"},
			func(c *Config) { c.ReapUnproven, c.ReapOwn = time.Minute, 10*time.Minute }},
		{"an annotation of a newer version", "k8s.io", "", map[string]string{"io.containerd.reaper.later": "x"}, func(*Config) {}},
		{"Docker gets no events", "moby", "", nil, func(c *Config) { c.Events = false }},
		{"unless asked for", "moby", "events = true", nil, func(*Config) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := Config{Mode: ModeAssist, ForkLog: ForkLogAuto, Grace: time.Second, StatsInterval: 10 * time.Second, Events: true,
				OrphanEventRate: 50, OrphanEventBurst: 200}
			tt.want(&want)
			got, err := configure(tt.namespace, table(t, tt.options), tt.annotations)
			if err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestConfigureRejects(t *testing.T) {
	for name, tt := range map[string]struct {
		options     string
		annotations map[string]string
		want        []string
	}{
		"an unknown mode":          {"", map[string]string{AnnotationMode: "asist"}, []string{AnnotationMode, `"asist"`, "assist init observe off"}},
		"an empty mode":            {"", map[string]string{AnnotationMode: ""}, []string{AnnotationMode, `""`, "assist"}},
		"a mode in capitals":       {`mode = "OFF"`, nil, []string{"option mode", `"OFF"`, "off"}},
		"a malformed duration":     {"", map[string]string{AnnotationGrace: "1 second"}, []string{AnnotationGrace, `"1 second"`, "500ms"}},
		"a duration without unit":  {"", map[string]string{AnnotationGrace: "1"}, []string{AnnotationGrace, `"1"`, "500ms"}},
		"a negative grace":         {"", map[string]string{AnnotationGrace: "-1s"}, []string{AnnotationGrace, `"-1s"`, "from 0s"}},
		"a negative option":        {`grace = "-1ms"`, nil, []string{"option grace", `"-1ms"`, "from 0s"}},
		"a grace of centuries":     {"", map[string]string{AnnotationGrace: "2000000h"}, []string{AnnotationGrace, "to 87600h"}},
		"a huge value":             {"", map[string]string{AnnotationMode: strings.Repeat("x", 1<<20)}, []string{AnnotationMode, "…"}},
		"a value with a newline":   {"", map[string]string{AnnotationMode: "a\nb"}, []string{`"a\nb"`}},
		"an unknown grouping":      {`grouping = "rack"`, nil, []string{"grouping", `"rack"`, "pod namespace node"}},
		"an unknown fork log":      {`forkLog = "bpf"`, nil, []string{"forkLog", `"bpf"`, "auto perf connector off"}},
		"a negative age":           {"", map[string]string{AnnotationReapOwn: "-1s"}, []string{AnnotationReapOwn, `"-1s"`, "from 0s"}},
		"a negative rate":          {"orphanEventRate = -1.0", nil, []string{"orphanEventRate", "-1", "from 0"}},
		"a rate that is no number": {"orphanEventRate = nan", nil, []string{"orphanEventRate", "NaN", "from 0"}},
		"a negative burst":         {"orphanEventBurst = -1", nil, []string{"orphanEventBurst", "-1", "from 0"}},
		"two at once": {"", map[string]string{AnnotationMode: "x", AnnotationGrace: "y"},
			[]string{AnnotationMode, AnnotationGrace, `"x"`, `"y"`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := configure("k8s.io", table(t, tt.options), tt.annotations)
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("got %v, want an invalid argument", err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("message %q does not say %q", err, part)
				}
			}
			if len(err.Error()) > 1000 || strings.Contains(err.Error(), "\n") {
				t.Errorf("message of %d bytes, or of more than one line", len(err.Error()))
			}
		})
	}
}

// TestSilentOptions: which options leave it to the path to tell the cgroup driver.
func TestSilentOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		msg  any
		want bool
	}{
		"none":                                  {nil, true},
		"a pod with a user namespace":           {&runcoptions.Options{IoUid: 65536, IoGid: 65536}, true},
		"the same, of a handler with an option": {&runcoptions.Options{IoUid: 65536, IoGid: 65536, BinaryName: "crun"}, false},
		"runc's own, empty":                     {&runcoptions.Options{}, false},
		"an empty table":                        {generic(""), false},
		"an owner in a table":                   {generic("IoUid = 5"), false},
	} {
		t.Run(name, func(t *testing.T) {
			var msg typeurl.Any
			if tt.msg != nil {
				var err error
				if msg, err = typeurl.MarshalAny(tt.msg); err != nil {
					t.Fatal(err)
				}
			}
			o, err := decodeOptions(msg)
			if err != nil {
				t.Fatal(err)
			}
			if got := o.silent(); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

func TestSystemdCgroup(t *testing.T) {
	for path, want := range map[string]bool{
		"system.slice:nerdctl:abc":                     true,
		"kubepods-besteffort.slice:cri-containerd:abc": true,
		":nerdctl:abc":                                 true,
		"":                                             false,
		"/default/abc":                                 false,
		"/a:b:c":                                       false,
		"a:b":                                          false,
		"a:b:c":                                        false,
		"a.slice:b:":                                   false,
		"a.slice:b:c:d":                                false,
		"kubepods/pod1/abc":                            false,
	} {
		var s spec
		s.Linux.CgroupsPath = path
		if got := s.systemdCgroup(); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
}

func FuzzConfigure(f *testing.F) {
	f.Add("assist", "1s", "mode = 'off'")
	f.Add("", "-9h", "grace = 3")
	f.Fuzz(func(t *testing.T, mode, grace, body string) {
		o, err := decodeGeneric(generic(body))
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("options %q: %v", body, err)
			}
			return
		}
		c, err := configure("x", o.toml, map[string]string{AnnotationMode: mode, AnnotationGrace: grace})
		if err == nil && (c.Grace < 0 || c.StatsInterval < 0 || c.Mode != ModeAssist && c.Mode != ModeObserve && c.Mode != ModeOff) {
			t.Errorf("accepted %+v", c)
		}
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v is no invalid argument", err)
		}
	})
}
