// Package kube is the little of the Kubernetes API that the installer needs, from within a pod.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"
)

// ServiceAccountDir is where the kubelet mounts a pod's credentials.
const ServiceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// requestTimeout is for one request.
const requestTimeout = 30 * time.Second

// Client talks to the API server with a pod's service account.
type Client struct {
	base  string
	http  *http.Client
	token func() ([]byte, error)
}

// InCluster returns a client for the pod that the process is in. It keeps the directory with the credentials open, so it
// works also after a chroot(2); the token is read for each request, since the kubelet renews it.
func InCluster() (*Client, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, fmt.Errorf("find the API server: KUBERNETES_SERVICE_HOST is %q and KUBERNETES_SERVICE_PORT %q, as outside of a pod", host, port)
	}
	dir, err := os.OpenRoot(ServiceAccountDir)
	if err != nil {
		return nil, fmt.Errorf("credentials of the service account: %w", err)
	}
	ca, err := dir.ReadFile("ca.crt")
	if err != nil {
		return nil, fmt.Errorf("credentials of the service account: %w", err)
	}
	return New("https://"+net.JoinHostPort(host, port), ca, func() ([]byte, error) { return dir.ReadFile("token") })
}

// New returns a client for the API server at base, whose certificate ca (PEM) has signed.
func New(base string, ca []byte, token func() ([]byte, error)) (*Client, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("certificate of the API server %s: no PEM", base)
	}
	return &Client{base: base, token: token, http: &http.Client{
		Timeout:   requestTimeout,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
	}}, nil
}

// do sends body as JSON and decodes the answer into result, both optional.
func (c *Client) do(ctx context.Context, method, path, contentType string, body, result any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	token, err := c.token()
	if err != nil {
		return fmt.Errorf("token of the service account: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %.300q", method, path, resp.Status, answer)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer, result); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// LabelNode sets a label of a node, or takes it away where value is nil.
func (c *Client) LabelNode(ctx context.Context, node, key string, value *string) error {
	patch := map[string]any{"metadata": map[string]any{"labels": map[string]*string{key: value}}}
	err := c.do(ctx, http.MethodPatch, "/api/v1/nodes/"+url.PathEscape(node), "application/merge-patch+json", patch, nil)
	if err != nil {
		return fmt.Errorf("label node %q with %s: %w", node, key, err)
	}
	return nil
}

// NodesWith returns the names of the nodes that have a label, whatever its value.
func (c *Client) NodesWith(ctx context.Context, key string) ([]string, error) {
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		} `json:"items"`
	}
	if err := c.do(ctx, http.MethodGet, "/api/v1/nodes?labelSelector="+url.QueryEscape(key), "", nil, &list); err != nil {
		return nil, fmt.Errorf("list nodes with label %s: %w", key, err)
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Metadata.Name)
	}
	slices.Sort(names)
	return names, nil
}

// SetDaemonSetEnv sets an environment variable of a container of a DaemonSet, whose pods are then replaced.
func (c *Client) SetDaemonSetEnv(ctx context.Context, namespace, name, container, key, value string) error {
	env := []any{map[string]any{"name": key, "value": value}}
	containers := []any{map[string]any{"name": container, "env": env}}
	patch := map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"containers": containers}}}}
	path := "/apis/apps/v1/namespaces/" + url.PathEscape(namespace) + "/daemonsets/" + url.PathEscape(name)
	if err := c.do(ctx, http.MethodPatch, path, "application/strategic-merge-patch+json", patch, nil); err != nil {
		return fmt.Errorf("set %s=%s of DaemonSet %s/%s: %w", key, value, namespace, name, err)
	}
	return nil
}
