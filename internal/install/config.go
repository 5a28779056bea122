package install

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	runtimeType = "io.containerd.reaper.v2"

	note       = "# written by reaper-install, which takes it out again"
	blockBegin = "\n# reaper-install: begin, written by it and taken out by \"reaper-install uninstall\"\n"
	blockEnd   = "# reaper-install: end\n"
)

// criPlugins are the names under which the runtime handlers of CRI stand, by the version of the configuration.
var criPlugins = map[int]string{
	1: "cri",
	2: "io.containerd.grpc.v1.cri",
	3: "io.containerd.cri.v1.runtime",
	4: "io.containerd.cri.v1.runtime",
}

// mainFile is what has to be known of a main configuration file.
type mainFile struct {
	Version int      `toml:"version"`
	Imports []string `toml:"imports"`
}

// parseMain returns version 1 for a file that names none, as containerd does.
func parseMain(text []byte) (mainFile, error) {
	f := mainFile{Version: 1}
	if err := toml.Unmarshal(text, &f); err != nil {
		return f, err
	}
	if criPlugins[f.Version] == "" {
		return f, fmt.Errorf("version = %d is not known, want 1 to 4", f.Version)
	}
	return f, nil
}

// imports reports whether a main file at path loads the file target, as containerd's resolveImports sees it.
func (f mainFile) imports(path, target string) bool {
	return slices.ContainsFunc(f.Imports, func(p string) bool {
		if p = filepath.Clean(p); !filepath.IsAbs(p) {
			p = filepath.Join(filepath.Dir(path), p)
		}
		ok, err := filepath.Match(p, target)
		return err == nil && ok
	})
}

// addImport adds a pattern to the imports of a main file and leaves every other byte as it is. dropImport undoes it.
func addImport(text []byte, pattern string) ([]byte, error) {
	quoted := "'" + pattern + "'"
	at, empty, err := importsEnd(text)
	if err != nil {
		return nil, err
	}
	switch {
	case at < 0:
		return append([]byte("imports = ["+quoted+"] "+note+"\n"), text...), nil
	case empty:
		return slices.Insert(bytes.Clone(text), at, []byte(quoted)...), nil
	}
	return slices.Insert(bytes.Clone(text), at, []byte(", "+quoted)...), nil
}

// dropImport takes out what addImport has added, and returns text as it is where that is not found.
func dropImport(text []byte, pattern string) []byte {
	quoted := "'" + pattern + "'"
	for _, added := range []string{"imports = [" + quoted + "] " + note + "\n", ", " + quoted, quoted} {
		if i := bytes.Index(text, []byte(added)); i >= 0 {
			return slices.Delete(bytes.Clone(text), i, i+len(added))
		}
	}
	return text
}

// importsEnd returns the offset behind the last element of the top-level array "imports", or behind its bracket when it is
// empty, or -1 when there is no such key.
func importsEnd(text []byte) (at int, empty bool, err error) {
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind == unstable.Table || e.Kind == unstable.ArrayTable {
			break
		}
		if e.Kind != unstable.KeyValue {
			continue
		}
		key := e.Key()
		if !key.Next() || string(key.Node().Data) != "imports" || !key.IsLast() {
			continue
		}
		name := key.Node().Raw
		if e.Value().Kind != unstable.Array {
			return 0, false, errors.New("imports is not an array")
		}
		at = -1
		elements := e.Value().Children()
		for elements.Next() {
			if n := elements.Node(); n.Kind == unstable.String {
				at = int(n.Raw.Offset + n.Raw.Length)
			}
		}
		if at >= 0 {
			return at, false, nil
		}
		behind := int(name.Offset + name.Length)
		return behind + bytes.IndexByte(text[behind:], '[') + 1, true, nil
	}
	return -1, false, p.Error()
}

// dropBlock takes out the block that containerd 1.x has in its main file.
func dropBlock(text []byte) ([]byte, error) {
	before, rest, found := bytes.Cut(text, []byte(blockBegin))
	if !found {
		return text, nil
	}
	_, after, found := bytes.Cut(rest, []byte(blockEnd))
	if !found {
		return nil, fmt.Errorf("the block that reaper-install wrote has lost its last line %q: take it out by hand", strings.TrimSpace(blockEnd))
	}
	return slices.Concat(before, after), nil
}

// handlerTables renders the handler for a configuration of this version.
func handlerTables(version int, name string, options map[string]any) (string, error) {
	handler := map[string]any{
		"runtime_type": runtimeType,
		// Without these CRI keeps the annotations of pods to itself.
		"pod_annotations":       []string{"io.containerd.reaper.*"},
		"container_annotations": []string{"io.containerd.reaper.*"},
	}
	if len(options) > 0 {
		handler["options"] = options
	}
	return renderHandler(version, name, handler)
}

func renderHandler(version int, name string, handler map[string]any) (string, error) {
	return renderTable(fmt.Sprintf("plugins.'%s'.containerd.runtimes.'%s'", criPlugins[version], name), handler)
}

// renderTable writes no header but the table's own and those below it: one of a table above could be there a second time,
// which TOML forbids.
func renderTable(path string, table map[string]any) (string, error) {
	values, below := map[string]any{}, map[string]map[string]any{}
	for key, value := range table {
		if t, ok := value.(map[string]any); ok {
			below[key] = t
		} else {
			values[key] = value
		}
	}
	text, err := toml.Marshal(values)
	if err != nil {
		return "", fmt.Errorf("table %s: %w", path, err)
	}
	rendered := "[" + path + "]\n" + string(text)
	for _, key := range slices.Sorted(maps.Keys(below)) {
		text, err := renderTable(path+"."+key, below[key])
		if err != nil {
			return "", err
		}
		rendered += text
	}
	return rendered, nil
}

// defaultHandlers renders the handlers that containerd has without being told. containerd 1.x forgets them as soon as a
// configuration names any other.
func defaultHandlers(main []byte, version int, d dump) (string, error) {
	text, err := parseDump(main)
	if err != nil {
		return "", err
	}
	if runtimes, ok := text.at("plugins", criPlugins[version], "containerd", "runtimes").(map[string]any); ok && len(runtimes) > 0 {
		return "", nil
	}
	runtimes, _ := dump(d.cri()).at("runtimes").(map[string]any)
	rendered := ""
	for _, name := range slices.Sorted(maps.Keys(runtimes)) {
		handler, ok := runtimes[name].(map[string]any)
		if !ok {
			continue
		}
		text, err := renderHandler(version, name, handler)
		if err != nil {
			return "", err
		}
		rendered += text
	}
	return rendered, nil
}

// ParseOptions reads runtime options, the body of a TOML table.
func ParseOptions(text []byte) (map[string]any, error) {
	options := map[string]any{}
	if err := toml.Unmarshal(text, &options); err != nil {
		return nil, fmt.Errorf("runtime options: %w", err)
	}
	for key, value := range options {
		if _, ok := value.(map[string]any); ok {
			return nil, fmt.Errorf("runtime options: %q is a table, want a value", key)
		}
	}
	return options, nil
}

// dump is a configuration as containerd understood it, with all defaults.
type dump map[string]any

func parseDump(text []byte) (dump, error) {
	d := dump{}
	if err := toml.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("parse what containerd dumped: %w", err)
	}
	return d, nil
}

// at returns a value in nested tables, or nil.
func (d dump) at(keys ...string) any {
	var v any = map[string]any(d)
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

// cri returns the table "containerd" of the plugin that has CRI's handlers, or nil.
func (d dump) cri() map[string]any {
	for version := len(criPlugins); version > 0; version-- {
		if t, ok := d.at("plugins", criPlugins[version], "containerd").(map[string]any); ok {
			return t
		}
	}
	return nil
}

// criOff reports whether the configuration disables CRI, as Docker's package of containerd does.
func (d dump) criOff() bool {
	list, _ := d["disabled_plugins"].([]any)
	return slices.ContainsFunc(list, func(v any) bool {
		return v == "cri" || v == "io.containerd.grpc.v1.cri" || v == "io.containerd.cri.v1.runtime"
	})
}

func (d dump) handler(name string) map[string]any {
	h, _ := dump(d.cri()).at("runtimes", name).(map[string]any)
	return h
}

// address is the path of the gRPC socket.
func (d dump) address() string {
	for _, keys := range [][]string{{"grpc", "address"}, {"plugins", "io.containerd.server.v1.grpc", "address"}} {
		if a, ok := d.at(keys...).(string); ok && a != "" {
			return a
		}
	}
	return "/run/containerd/containerd.sock"
}

// systemdCgroup returns what the default handler says of the cgroup driver.
func (d dump) systemdCgroup() bool {
	name, _ := d.cri()["default_runtime_name"].(string)
	on, _ := dump(d.handler(name)).at("options", "SystemdCgroup").(bool)
	return on
}

// compare returns an error unless the two differ in nothing but this handler, which now has the options, or is gone when
// present is false. exact says that the handler may have no other options.
func compare(before, after dump, name string, present bool, options map[string]any, exact bool) error {
	h := after.handler(name)
	if !present && h != nil {
		return fmt.Errorf("the handler %q would still be there", name)
	}
	if present {
		if h == nil {
			return fmt.Errorf("the handler %q would not be there: another imported file may replace the table", name)
		}
		if h["runtime_type"] != runtimeType {
			return fmt.Errorf("the handler %q would have the runtime_type %q", name, h["runtime_type"])
		}
		got, _ := h["options"].(map[string]any)
		for key, want := range options {
			if !reflect.DeepEqual(got[key], want) {
				return fmt.Errorf("the option %q of the handler %q would be %v, want %v", key, name, got[key], want)
			}
		}
		if exact && len(got) != len(options) {
			return fmt.Errorf("the handler %q would have the options %v, want %v", name, got, options)
		}
	}
	if diff := firstDifference("", map[string]any(before.withoutHandler(name)), map[string]any(after.withoutHandler(name))); diff != "" {
		return fmt.Errorf("it would change %s, which is not ours", diff)
	}
	return nil
}

// withoutHandler returns a copy without the handler and without what names the files that were read.
func (d dump) withoutHandler(name string) dump {
	c, _ := copyTables(map[string]any(d)).(map[string]any)
	delete(c, "imports")
	if runtimes, ok := dump(dump(c).cri()).at("runtimes").(map[string]any); ok {
		delete(runtimes, name)
	}
	return c
}

func copyTables(v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	c := make(map[string]any, len(m))
	for k, v := range m {
		c[k] = copyTables(v)
	}
	return c
}

func firstDifference(path string, a, b any) string {
	ma, aok := a.(map[string]any)
	mb, bok := b.(map[string]any)
	if !aok || !bok {
		if reflect.DeepEqual(a, b) {
			return ""
		}
		return strings.TrimPrefix(path, ".")
	}
	keys := map[string]bool{}
	for k := range ma {
		keys[k] = true
	}
	for k := range mb {
		keys[k] = true
	}
	for k := range keys {
		if diff := firstDifference(path+"."+k, ma[k], mb[k]); diff != "" {
			return diff
		}
	}
	return ""
}
