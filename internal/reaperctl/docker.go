package reaperctl

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"time"
)

// dockerSocket is where Docker listens as it comes.
const dockerSocket = "/var/run/docker.sock"

const (
	dockerTimeout = 2 * time.Second
	// maxDockerAnswer bounds what is read of an answer: some 2 kB per container.
	maxDockerAnswer = 16 << 20
)

// dockerNames asks Docker for the names of its running containers, by ID (GET /containers/json, Docker Engine API). Where there is no
// Docker, or it does not answer, there are none: they are an embellishment.
func dockerNames(ctx context.Context, socket string) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/containers/json", http.NoBody)
	if err != nil {
		return nil
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var containers []struct {
		ID    string `json:"Id"`
		Names []string
	}
	if resp.StatusCode != http.StatusOK || json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxDockerAnswer)).Decode(&containers) != nil {
		return nil
	}
	names := make(map[string]string)
	for _, c := range containers {
		if len(c.Names) > 0 {
			names[c.ID] = strings.TrimPrefix(c.Names[0], "/")
		}
	}
	return names
}
