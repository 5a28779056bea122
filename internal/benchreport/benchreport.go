package benchreport

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/internal/uname"
)

// Machine is where and when something was measured.
type Machine struct {
	Date     string `json:"date"`
	Kernel   string `json:"kernel"`
	Arch     string `json:"arch"`
	CPUModel string `json:"cpuModel"`
	CPUs     int    `json:"possibleCPUs"`
	Go       string `json:"go"`
	CC       string `json:"cc"`
	Commit   string `json:"commit"`
	Load     string `json:"loadBefore"`
	LoadEnd  string `json:"loadAfter"`
}

// ThisMachine describes the machine; set LoadEnd to Load() at the end.
func ThisMachine() (Machine, error) {
	cpus, err := possible()
	if err != nil {
		return Machine{}, err
	}
	return Machine{
		Date: time.Now().UTC().Format(time.DateOnly), Kernel: uname.Get().Release, Arch: runtime.GOARCH, CPUs: cpus,
		CPUModel: lineOf("/proc/cpuinfo", "model name"), Go: runtime.Version(), CC: FirstLine("gcc", "--version"),
		Commit: FirstLine("git", "rev-parse", "--short", "HEAD"), Load: Load(),
	}, nil
}

// possible returns how many CPUs the kernel may ever bring online.
func possible() (int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	var last int
	if _, err := fmt.Sscanf(string(text), "0-%d", &last); err == nil {
		return last + 1, nil
	}
	if strings.TrimSpace(string(text)) == "0" {
		return 1, nil
	}
	return 0, fmt.Errorf("possible CPUs %q: want a range from 0", text)
}

func lineOf(file, name string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// FirstLine returns the first line of what a command prints, "unknown" if it fails.
func FirstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// Version returns a version without the "v" in front and the "+unknown" behind it, which a build outside of git has.
func Version(v string) string { return strings.TrimSuffix(strings.TrimPrefix(v, "v"), "+unknown") }

// Load returns the three load averages.
func Load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}

// Result is what a benchmark measured: it is kept as JSON.
type Result interface {
	// Tables returns the text between the marks.
	Tables() string
}

// Keep writes r to dataFile; nil keeps the file as it is and reads it into into. Then it renews the tables of docFile, between
// marks that name the make target.
func Keep(r, into Result, dataFile, docFile, target string) error {
	if r != nil {
		text, err := json.MarshalIndent(r, "", "\t")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(dataFile), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(dataFile, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(dataFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("parse %s: %w", dataFile, err)
	}
	return RenewFile(docFile, target, into.Tables())
}

// RenewFile is Renew for a page in a file.
func RenewFile(file, target, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	out, err := Renew(string(old), target, text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(out), 0o644)
}

// Renew replaces what stands between the marks of a make target.
func Renew(page, target, tables string) (string, error) {
	begin, end := "<!-- begin: written by make "+target+" -->", "<!-- end: written by make "+target+" -->"
	head, rest, ok := strings.Cut(page, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fmt.Errorf("no place for the tables: want the lines %q and %q", begin, end)
	}
	return head + begin + "\n\n" + tables + "\n" + end + tail, nil
}

// Quantile of at least one value, interpolated.
func Quantile(values []float64, q float64) float64 {
	v := slices.Sorted(slices.Values(values))
	at := q * float64(len(v)-1)
	i := int(at)
	if i+1 == len(v) {
		return v[i]
	}
	return v[i] + (at-float64(i))*(v[i+1]-v[i])
}

// Median of at least one value.
func Median[T int64 | float64](values []T) float64 {
	f := make([]float64, len(values))
	for i, v := range values {
		f[i] = float64(v)
	}
	return Quantile(f, 0.5)
}

// Values returns a number of each sample.
func Values[S any](samples []S, number func(S) float64) []float64 {
	out := make([]float64, 0, len(samples))
	for _, s := range samples {
		out = append(out, number(s))
	}
	return out
}

// Spread writes the median, and in brackets the quartiles; "" where nothing was measured.
func Spread(values []float64, digits int) string {
	if len(values) == 0 {
		return ""
	}
	return fmt.Sprintf("%.*f (%.*f to %.*f)", digits, Quantile(values, 0.5), digits, Quantile(values, 0.25), digits, Quantile(values, 0.75))
}
