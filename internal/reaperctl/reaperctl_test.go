package reaperctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/containerd/errdefs"
	"go.yaml.in/yaml/v3"

	"github.com/reaper-shim/reaper/internal/node"
	"github.com/reaper-shim/reaper/internal/uname"
	"github.com/reaper-shim/reaper/shim/api"
)

func TestSafe(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"node", "node"},
		{"größe 大", "größe 大"},
		{`say "hi"`, `say "hi"`},
		{`a\b`, `a\\b`},
		{"\x1b[31m", `\x1b[31m`},
		{"\u202eabc", `\u202eabc`},
		{"a\nb\tc", `a\nb\tc`},
		{"\xff", `\xff`},
		{"\x00", `\x00`},
		{"\u2028", `\u2028`},
		{"\x7f", `\x7f`},
	} {
		if got := safe(tt.in); got != tt.want {
			t.Errorf("safe(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// FuzzDocuments: a document says what it was made from, and nothing in it fails to print.
func FuzzDocuments(f *testing.F) {
	for _, s := range []string{"node", hostile, "true", "12", "null", "- a", "a: b", "#", "", " ", "\x00\u0085\u2029\ufeff", "\U000e0001", "'", `"`, "~", "0x1f", "!!str x", "&a", "*a", "é"} {
		f.Add(s)
	}
	type doc struct {
		Text string         `json:"text" yaml:"text"`
		Map  map[string]int `json:"map" yaml:"map"`
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "\ufffd")
		// A key on one line with its value has at most 1024 characters (YAML 1.2.2, 7.4.2), escapes included. Ours are reasons of
		// refusals, and exit statuses.
		key := s
		if len(strconv.QuoteToASCII(key)) > 1000 {
			key = "long"
		}
		in := doc{Text: s, Map: map[string]int{key: 1}}
		js, err := toJSON(in, "  ")
		if err != nil {
			t.Fatal(err)
		}
		var fromJSON doc
		if err := json.Unmarshal(js, &fromJSON); err != nil || fromJSON.Text != s || fromJSON.Map[key] != 1 {
			t.Errorf("JSON of %q: %v, %q", s, err, js)
		}
		ys, err := toYAML(in)
		if err != nil {
			t.Fatal(err)
		}
		var fromYAML doc
		if err := yaml.Unmarshal(ys, &fromYAML); err != nil || fromYAML.Text != s || fromYAML.Map[key] != 1 {
			t.Errorf("YAML of %q: %v, %q is %+v", s, err, ys, fromYAML)
		}
		for _, out := range []string{string(js), string(ys), safe(s) + "\n"} {
			if !plain(strings.ReplaceAll(out, "\n", "")) {
				t.Errorf("%q does not print", out)
			}
		}
	})
}

func TestDuration(t *testing.T) {
	for in, want := range map[float64]string{0: "0ms", 0.25: "250ms", 1.25: "1.2s", 12.9: "12s", 93: "1m33s", 3720: "1h2m", 180000: "2d2h"} {
		if got := duration(in); got != want {
			t.Errorf("duration(%v) = %q, want %q", in, got, want)
		}
	}
}

func TestExitCodesAndHints(t *testing.T) {
	for _, tt := range []struct {
		err  error
		uid  int
		code int
		hint string
	}{
		{fmt.Errorf("%w at /s: %w", node.ErrUnavailable, fs.ErrNotExist), 0, ExitUnavailable, "--address"},
		{fmt.Errorf("%w at /s: %w", node.ErrUnavailable, fs.ErrPermission), 1000, ExitUnavailable, "as root"},
		{fmt.Errorf("find: %w", node.ErrNotFound), 0, ExitNoContainer, "reaperctl ps"},
		{fmt.Errorf("find: %w", node.ErrAmbiguous), 0, ExitNoContainer, "reaperctl ps"},
		{fmt.Errorf("list: %w", node.ErrForeign), 0, ExitForeign, "reaperctl scan"},
		{fmt.Errorf("reap: %w", errdefs.ErrFailedPrecondition), 0, ExitNotOK, ""},
		{fmt.Errorf("ask: %w", fs.ErrPermission), 1000, ExitError, "as root"},
		{errors.New("other"), 0, ExitError, ""},
	} {
		code := exitCode(tt.err)
		h := hint(tt.err, code, tt.uid)
		if code != tt.code || !strings.Contains(h, tt.hint) || (tt.hint == "") != (h == "") {
			t.Errorf("%v: %d, %q; want %d, %q", tt.err, code, h, tt.code, tt.hint)
		}
	}
}

func TestCompletions(t *testing.T) {
	tasks := []*node.Task{
		{Namespace: "default", ID: "abc123", Names: node.Names{Nerdctl: "web"}},
		{Namespace: "default", ID: "abd456"},
		{Namespace: "default", ID: "fff", Names: node.Names{Nerdctl: "evil\x1b"}},
		{Namespace: "k8s.io", ID: "eee", Names: node.Names{Pod: "p", PodNamespace: "shop", Container: "c"}},
	}
	for _, tt := range []struct{ prefix, want string }{
		{"", "abd456 shop/p/c web"}, {"w", "web"}, {"ab", "abc123 abd456"}, {"abc", "abc123"}, {"shop/", "shop/p/c"}, {"evil", ""}, {"f", "fff"},
	} {
		var names []string
		for _, c := range completions(tasks, tt.prefix) {
			name, _, _ := strings.Cut(c, "\t")
			names = append(names, name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.prefix, got, tt.want)
		}
	}
}

func TestReapTriesAgain(t *testing.T) {
	answers := []*api.ReapResponse{
		{Reaped: 2, Left: 3, ProvenLeft: 2, Declined: "busy"}, {Reaped: 0, Left: 3, ProvenLeft: 2, Declined: "busy"}, {Reaped: 2, Left: 1},
	}
	calls := 0
	call := func(context.Context) (*api.ReapResponse, error) {
		a := answers[min(calls, len(answers)-1)]
		calls++
		return a, nil
	}
	res, err := reap(t.Context(), time.Minute, call)
	if err != nil || calls != 3 || res.Reaped != 4 || res.Left != 1 || res.ProvenLeft != 0 || res.Declined != "" {
		t.Errorf("%d calls: %+v, %v; want three, and their sum", calls, res, err)
	}
	calls, answers = 0, answers[:1]
	if res, err := reap(t.Context(), 0, call); err != nil || res.ProvenLeft != 2 || res.Declined != "busy" {
		t.Errorf("without waiting: %+v, %v; want what is left and why", res, err)
	}
}

func TestDockerNames(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	answer := `[{"Id":"d1","Names":["/web"],"Image":"nginx"},{"Id":"d2","Names":[]}]`
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/containers/json" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, answer)
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	if got := dockerNames(t.Context(), socket); len(got) != 1 || got["d1"] != "web" {
		t.Errorf("names %v, want web for d1", got)
	}
	answer = "{"
	if got := dockerNames(t.Context(), socket); len(got) != 0 {
		t.Errorf("names from what is no answer: %v", got)
	}
	if got := dockerNames(t.Context(), socket+"x"); len(got) != 0 {
		t.Errorf("names without Docker: %v", got)
	}
}

// TestHostChecks: each check of the machine with what it needs, and without.
func TestHostChecks(t *testing.T) {
	self := os.Getpid()
	good := func() fstest.MapFS {
		return fstest.MapFS{
			fmt.Sprintf("%d/task/%d/children", self, self): {},
			"sys/kernel/yama/ptrace_scope":                 {Data: []byte("1\n")},
			"sys/kernel/perf_event_paranoid":               {Data: []byte("2\n")},
			"net/connector":                                {Data: []byte("Name            ID\ncn_proc         1:1\n")},
			"9/status":                                     {Data: []byte("Name:\tcontainerd\nCapEff:\t000001ffffffffff\n")},
		}
	}
	h := host{proc: good(), cgroup: fstest.MapFS{"cgroup.controllers": {Data: []byte("cpu pids\n")}}, kernelInfo: uname.Info{Release: "6.12.1", Machine: "x86_64"}}
	for _, c := range []Check{h.user(), h.kernel(), h.architecture(), h.children(), h.ptrace(), h.forkLog("9"), h.capabilities("9"), h.cgroups()} {
		if c.Status != statusOK || c.Remedy != "" {
			t.Errorf("all there: %+v", c)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*host, fstest.MapFS)
		check  func(host) Check
		status string
		found  string
	}{
		{"user", func(h *host, _ fstest.MapFS) { h.uid = 1000 }, host.user, statusFail, "1000"},
		{"old kernel", func(h *host, _ fstest.MapFS) { h.kernelInfo.Release = "5.2.0" }, host.kernel, statusFail, "5.2.0"},
		{"kernel without lost records", func(h *host, _ fstest.MapFS) { h.kernelInfo.Release = "5.15.0-9" }, host.kernel, statusNote, "5.15"},
		{"kernel without version", func(h *host, _ fstest.MapFS) { h.kernelInfo.Release = "x" }, host.kernel, statusUnknown, "x"},
		{"architecture", func(h *host, _ fstest.MapFS) { h.kernelInfo.Machine = "riscv64" }, host.architecture, statusFail, "riscv64"},
		{"arm64", func(h *host, _ fstest.MapFS) { h.kernelInfo.Machine = "aarch64" }, host.architecture, statusNote, "aarch64"},
		{"no children", func(_ *host, p fstest.MapFS) { delete(p, fmt.Sprintf("%d/task/%d/children", self, self)) }, host.children, statusNote, "CONFIG_PROC_CHILDREN"},
		{"Yama", func(_ *host, p fstest.MapFS) { p["sys/kernel/yama/ptrace_scope"].Data = []byte("3\n") }, host.ptrace, statusFail, "= 3"},
		{"no Yama", func(_ *host, p fstest.MapFS) { delete(p, "sys/kernel/yama/ptrace_scope") }, host.ptrace, statusOK, "no Yama"},
		{"no perf", func(_ *host, p fstest.MapFS) { delete(p, "sys/kernel/perf_event_paranoid") }, fork9, statusNote, "no perf"},
		{"no connector", func(_ *host, p fstest.MapFS) { delete(p, "net/connector") }, fork9, statusOK, "no proc connector"},
		{"neither", func(_ *host, p fstest.MapFS) { p["9/status"].Data = []byte("CapEff:\t0000000000080000\n") }, fork9, statusFail, "neither"},
		{"no capability", func(_ *host, p fstest.MapFS) { p["9/status"].Data = []byte("CapEff:\t0000000000200000\n") }, caps9, statusFail, "CAP_SYS_PTRACE"},
		{"process not seen", func(*host, fstest.MapFS) {}, func(h host) Check { return h.capabilities("") }, statusUnknown, "cannot"},
		{"v2 without pids", func(h *host, _ fstest.MapFS) { h.cgroup = fstest.MapFS{"cgroup.controllers": {Data: []byte("cpu")}} }, host.cgroups, statusNote, "version 2"},
		{"v1 without pids", func(h *host, _ fstest.MapFS) { h.cgroup = fstest.MapFS{} }, host.cgroups, statusNote, "version 1"},
	} {
		p := good()
		broken := h
		broken.proc = p
		tt.change(&broken, p)
		c := tt.check(broken)
		if c.Status != tt.status || !strings.Contains(c.Found, tt.found) || (c.Status == statusOK) != (c.Remedy == "") {
			t.Errorf("%s: %+v; want %s with %q, and a remedy", tt.name, c, tt.status, tt.found)
		}
	}
}

func fork9(h host) Check { return h.forkLog("9") }
func caps9(h host) Check { return h.capabilities("9") }

func TestConfigChecks(t *testing.T) {
	const table = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes"
	all := "pod_annotations = ['io.containerd.reaper.*']\ncontainer_annotations = ['io.containerd.*']\n"
	for _, tt := range []struct {
		name   string
		files  map[string]string
		status string
		found  string
	}{
		{"handler", map[string]string{"config.toml": "version = 3\n[" + table + ".zombie]\nruntime_type = 'io.containerd.reaper.v2'\n" + all}, statusOK, `"zombie"`},
		{"1.7", map[string]string{"config.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.r]\nruntime_type = 'io.containerd.reaper.v2'\n" + all}, statusOK, `"r"`},
		{"path of the shim", map[string]string{"config.toml": "[" + table + ".r]\nruntime_type = '/opt/containerd-shim-reaper-v2'\n" + all}, statusOK, `"r"`},
		{"in an imported file", map[string]string{"config.toml": "imports = ['conf.d/*.toml']\n", "conf.d/r.toml": "[" + table + ".r]\nruntime_type = 'io.containerd.reaper.v2'\n" + all}, statusOK, `"r"`},
		{"imports in a circle", map[string]string{"config.toml": "imports = ['config.toml']\n"}, statusNote, "no CRI handler"},
		{"a directory that is not imported", map[string]string{"config.toml": "version = 3\n", "conf.d/r.toml": "[" + table + ".r]\nruntime_type = 'io.containerd.reaper.v2'\n" + all}, statusNote, "no CRI handler"},
		{"no annotations", map[string]string{"config.toml": "[" + table + ".r]\nruntime_type = 'io.containerd.reaper.v2'\n"}, statusFail, "pod_annotations and container_annotations"},
		{"one of them", map[string]string{"config.toml": "[" + table + ".r]\nruntime_type = 'io.containerd.reaper.v2'\npod_annotations = ['io.containerd.reaper.mode']\n" +
			"container_annotations = ['*']\n"}, statusFail, "without pod_annotations"},
		{"other runtimes", map[string]string{"config.toml": "[" + table + ".runc]\nruntime_type = 'io.containerd.runc.v2'\n"}, statusNote, "no CRI handler"},
		{"no file", nil, statusNote, "config.toml"},
		{"no TOML", map[string]string{"config.toml": "[["}, statusNote, "config.toml"},
	} {
		root := t.TempDir()
		for name, text := range tt.files {
			file := filepath.Join(root, "etc", name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		checks := configChecks(node.Daemon{Root: root, Config: "/etc/config.toml"})
		if len(checks) != 1 || checks[0].Status != tt.status || !strings.Contains(checks[0].Found, tt.found) {
			t.Errorf("%s: %+v; want %s with %q", tt.name, checks, tt.status, tt.found)
		}
	}
}

func TestContainerdVersion(t *testing.T) {
	for v, want := range map[string]string{"v2.4.2": statusOK, "2.3.0": statusOK, "v2.0.1": statusNote, "1.7.35": statusNote, "1.5.0": statusFail, "unknown": statusOK} {
		if c := containerdVersion(node.Daemon{Version: v}); c.Status != want {
			t.Errorf("version %s: %+v, want %s", v, c, want)
		}
	}
}

// TestHelp: every command says what it is for, and works without a containerd.
func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"--version"}, {"ps", "--help"}, {"completion", "bash"}} {
		var out, errOut strings.Builder
		if code := Main(t.Context(), "1.2.3", args, &out, &errOut); code != ExitOK || out.String() == "" || errOut.String() != "" {
			t.Errorf("%v: exit code %d, %q", args, code, errOut.String())
		}
	}
}
