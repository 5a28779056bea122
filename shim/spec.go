package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// specFile is where a bundle has its spec (OCI runtime-spec, bundle.md).
const specFile = "config.json"

// spec is what the shim reads of a bundle's config.json (OCI runtime-spec, config.md).
type spec struct {
	Annotations map[string]string `json:"annotations"`
	Linux       struct {
		CgroupsPath string `json:"cgroupsPath"`
	} `json:"linux"`

	file string
	data []byte // the file as it was read
}

func readSpec(bundle string) (*spec, error) {
	name := filepath.Join(bundle, specFile)
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the spec of the bundle: %w", err)
	}
	var s spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	s.file, s.data = name, data
	return &s, nil
}

// systemdCgroup reports whether the cgroups path is one for systemd's cgroup driver, "slice:prefix:name" (runc,
// docs/systemd.md). Clients that do not know this runtime, nerdctl among them, have no other way to say it.
func (s *spec) systemdCgroup() bool {
	parts := strings.Split(s.Linux.CgroupsPath, ":")
	return len(parts) == 3 && parts[2] != "" && (parts[0] == "" || strings.HasSuffix(parts[0], ".slice")) &&
		!strings.HasPrefix(s.Linux.CgroupsPath, "/")
}
