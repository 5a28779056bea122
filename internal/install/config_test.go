package install

import (
	"strings"
	"testing"
)

const pattern = "/etc/containerd/conf.d/reaper*.toml"

func TestImports(t *testing.T) {
	const ours = "'" + pattern + "'"
	for name, c := range map[string]struct{ before, after string }{
		"no key":           {"version = 3\n", "imports = [" + ours + "] " + note + "\nversion = 3\n"},
		"nothing":          {"", "imports = [" + ours + "] " + note + "\n"},
		"empty":            {"imports = []", "imports = [" + ours + "]"},
		"empty, spread":    {"imports = [\n  # none\n]\n", "imports = [" + ours + "\n  # none\n]\n"},
		"one":              {`imports = ["/a.toml"] # x`, `imports = ["/a.toml", ` + ours + `] # x`},
		"spread":           {"imports = [\n  '/a.toml',\n  '/b.toml', # last\n]\n", "imports = [\n  '/a.toml',\n  '/b.toml', " + ours + ", # last\n]\n"},
		"a bracket inside": {`imports = ["/a[1].toml"]`, `imports = ["/a[1].toml", ` + ours + `]`},
		"quoted key":       {`"imports" = ['/a.toml']`, `"imports" = ['/a.toml', ` + ours + `]`},
		"of a table":       {"[x]\nimports = ['/a']\n", "imports = [" + ours + "] " + note + "\n[x]\nimports = ['/a']\n"},
		"dotted":           {"imports.x = 1\n", "imports = [" + ours + "] " + note + "\nimports.x = 1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := addImport([]byte(c.before), pattern)
			if err != nil || string(got) != c.after {
				t.Errorf("addImport: %v\n%s\nwant\n%s", err, got, c.after)
			}
			if back := dropImport(got, pattern); string(back) != c.before {
				t.Errorf("dropImport:\n%q\nwant\n%q", back, c.before)
			}
			// "dotted" is nothing that containerd could read.
			if f, err := parseMain(append([]byte("version = 2\n"), strings.ReplaceAll(string(got), "version = 3", "")...)); name != "dotted" &&
				(err != nil || !f.imports("/etc/containerd/config.toml", "/etc/containerd/conf.d/reaper.toml")) {
				t.Errorf("not imported: %v %v", f, err)
			}
		})
	}
	if _, err := addImport([]byte("imports = '/a.toml'"), pattern); err == nil {
		t.Error("imports that is a string was taken")
	}
	if _, err := addImport([]byte("imports = ["), pattern); err == nil {
		t.Error("a broken file was taken")
	}
}

func TestImportsAreRelativeToTheFile(t *testing.T) {
	f := mainFile{Imports: []string{"conf.d/*.toml"}}
	if !f.imports("/etc/containerd/config.toml", "/etc/containerd/conf.d/reaper.toml") || f.imports("/etc/config.toml", "/etc/containerd/conf.d/reaper.toml") {
		t.Error("a relative pattern does not start at the directory of its file")
	}
}

func FuzzImports(f *testing.F) {
	for _, s := range []string{"", "imports = []", "imports = ['/a', \"b\", # c\n]", "version = 3\n[a]\nimports = 1", "imports = [[]]", "imports = ["} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if strings.Contains(string(text), pattern) {
			return
		}
		got, err := addImport(text, pattern)
		if err != nil {
			return
		}
		if back := dropImport(got, pattern); string(back) != string(text) {
			t.Errorf("%q became %q", text, back)
		}
	})
}

func TestBlock(t *testing.T) {
	for _, before := range []string{"", "version = 2", "version = 2\n", "\n\n"} {
		got, err := dropBlock([]byte(before + blockBegin + "[x]\n" + blockEnd))
		if err != nil || string(got) != before {
			t.Errorf("%q: %v, %q", before, err, got)
		}
	}
	if _, err := dropBlock([]byte("a = 1" + blockBegin + "[x]\n")); err == nil {
		t.Error("a block without an end was taken")
	}
}

func TestParseMain(t *testing.T) {
	if f, err := parseMain([]byte("root = '/x'\n")); err != nil || f.Version != 1 {
		t.Errorf("without a version: %v, %v, want version 1", f, err)
	}
	if _, err := parseMain([]byte("version = 9\n")); err == nil || !strings.Contains(err.Error(), "9") {
		t.Errorf("version 9: %v", err)
	}
}

func TestParseOptions(t *testing.T) {
	if _, err := ParseOptions([]byte("[x]\ny = 1\n")); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("a table: %v, want an error that names it", err)
	}
	if o, err := ParseOptions([]byte("mode = 'off'\n")); err != nil || o["mode"] != "off" {
		t.Errorf("%v, %v", o, err)
	}
}

// TestCompare: only the handler may differ.
func TestCompare(t *testing.T) {
	parse := func(text string) dump {
		d, err := parseDump([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	const base = "imports = ['/a']\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'native'\n" +
		"[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n"
	const handler = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.reaper]\nruntime_type = 'io.containerd.reaper.v2'\noptions = {mode = 'off'}\n"
	off := map[string]any{"mode": "off"}
	for name, c := range map[string]struct {
		after   string
		present bool
		options map[string]any
		want    string
	}{
		"as wanted":        {base + handler, true, off, ""},
		"another import":   {strings.Replace(base, "/a", "/b", 1) + handler, true, off, ""},
		"no handler":       {base, true, off, "would not be there"},
		"another type":     {base + strings.Replace(handler, "reaper.v2", "runc.v2", 1), true, off, "runtime_type"},
		"other options":    {base + strings.Replace(handler, "off", "init", 1), true, off, `"mode"`},
		"more options":     {base + handler, true, nil, "would have the options"},
		"a setting":        {strings.Replace(base, "native", "overlayfs", 1) + handler, true, off, "snapshotter"},
		"a handler is off": {strings.Split(base, "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes")[0] + handler, true, off, "runtimes"},
		"gone":             {base, false, nil, ""},
		"not gone":         {base + handler, false, nil, "still be there"},
	} {
		t.Run(name, func(t *testing.T) {
			err := compare(parse(base), parse(c.after), "reaper", c.present, c.options, true)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
