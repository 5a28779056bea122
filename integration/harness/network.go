package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// writeRegistry has all images pulled from one registry (containerd, docs/hosts.md).
func (d *Daemon) writeRegistry() error {
	if d.opts.Registry == "" {
		return nil
	}
	dir := filepath.Join(d.Dir, "hosts/_default")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = ['pull', 'resolve']\n", d.opts.Registry, d.opts.Registry)
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600)
}

// Network is a network of pods. It needs containerd 2.1 or later.
type Network string

// Networks.
const (
	NoNetwork Network = "" // pods have to be in the host's network namespace
	// LoopbackNetwork is a loopback device, and an address that leads nowhere.
	LoopbackNetwork Network = "loopback"
	// BridgeNetwork is a bridge with masquerading and host ports in the network namespace of the caller, which should be one
	// of its own. It needs the plugins of Debian's containernetworking-plugins, and iptables.
	BridgeNetwork Network = "bridge"
)

// nowhere is a CNI plugin (CNI specification 1.0.0) that does nothing.
const nowhere = `#!/bin/sh
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.88.0.2/32","interface":0}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
esac
`

// writeNetwork writes the CNI configuration.
func (d *Daemon) writeNetwork() error {
	var plugins []any
	switch d.opts.Network {
	case NoNetwork:
		return nil
	case LoopbackNetwork:
		if err := os.WriteFile(filepath.Join(d.Dir, "cni/bin/nowhere"), []byte(nowhere), 0o755); err != nil {
			return err
		}
		plugins = []any{map[string]any{"type": "nowhere"}}
	case BridgeNetwork:
		plugins = []any{
			map[string]any{
				"type": "bridge", "bridge": "reaper0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
				"ipam": map[string]any{
					"type": "host-local", "dataDir": filepath.Join(d.Dir, "cni/ipam"),
					"ranges": [][]map[string]string{{{"subnet": "10.88.0.0/16"}}},
					"routes": []map[string]string{{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		}
	default:
		return fmt.Errorf("network %q: want %q or %q", d.opts.Network, LoopbackNetwork, BridgeNetwork)
	}
	text, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "reaper", "plugins": plugins})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.Dir, "cni/net.d/10-reaper.conflist"), text, 0o600)
}

// LoopbackUp brings the loopback device of the caller's network namespace up: in a new one it is down.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up (netdevice(7)): %w", err)
	}
	return nil
}

// splitReference splits a reference into its host, its repository and its tag.
func splitReference(name string) (host, repository, tag string, err error) {
	host, rest, ok := strings.Cut(name, "/")
	repository, tag, tagged := strings.Cut(rest, ":")
	if !ok || !tagged || repository == "" || tag == "" {
		return "", "", "", fmt.Errorf("image name %q: want host/repository:tag", name)
	}
	return host, repository, tag, nil
}
