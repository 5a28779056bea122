package harness

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// get fetches a path, checks the body against the digest of the answer, and returns both.
func get(t *testing.T, server *httptest.Server, path string) ([]byte, http.Header) {
	t.Helper()
	resp, err := server.Client().Get(server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: status %d, %v: %s", path, resp.StatusCode, err, body)
	}
	if got := digest.FromBytes(body).String(); got != resp.Header.Get("Docker-Content-Digest") {
		t.Errorf("GET %s: digest of the body %s, header %v", path, got, resp.Header)
	}
	return body, resp.Header
}

func TestRegistry(t *testing.T) {
	layer, err := Layer(File{Name: "bin/", Mode: 0o755}, File{Name: "bin/x", Mode: 0o4755, Data: []byte("x")}, File{Name: "bin/y", Link: "bin/x", Hard: true})
	if err != nil {
		t.Fatal(err)
	}
	platforms := []ocispec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "s390x"}}
	registry, err := NewRegistry(
		Image{Names: []string{"example.org/some/image:1", "example.com/some/image:2"}, Layers: [][]byte{layer}},
		Image{Names: []string{"example.org/other:latest"}, Layers: [][]byte{layer}, Platforms: platforms},
	)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(registry)
	defer server.Close()

	one, header := get(t, server, "/v2/some/image/manifests/1")
	two, _ := get(t, server, "/v2/some/image/manifests/2")
	if string(one) != string(two) || header.Get("Content-Type") != ocispec.MediaTypeImageManifest {
		t.Errorf("two tags of one image give\n%s\n%s\nas %v", one, two, header)
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(one, &manifest); err != nil || len(manifest.Layers) != 1 {
		t.Fatalf("manifest %s: %v", one, err)
	}
	if got, _ := get(t, server, "/v2/some/image/blobs/"+manifest.Layers[0].Digest.String()); string(got) != string(layer) {
		t.Error("the layer is another")
	}
	text, header := get(t, server, "/v2/other/manifests/latest")
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil || header.Get("Content-Type") != ocispec.MediaTypeImageIndex {
		t.Fatalf("index %s as %v: %v", text, header, err)
	}
	seen := map[digest.Digest]bool{}
	for i, m := range index.Manifests {
		if m.Platform.Architecture != platforms[i].Architecture || seen[m.Digest] {
			t.Errorf("manifest %d of the index is %v", i, m)
		}
		seen[m.Digest] = true
		get(t, server, "/v2/other/manifests/"+m.Digest.String())
	}

	for _, path := range []string{"/", "/v2/some/image/manifests/3", "/v2/some/image/blobs/sha256:00", "/v2/some/image/tags/list"} {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: status %d, want 404", path, resp.StatusCode)
		}
	}
	resp, err := server.Client().Post(server.URL+"/v2/some/image/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: status %d, want 405", resp.StatusCode)
	}
	if _, err := NewRegistry(Image{Names: []string{"no-tag"}}); err == nil {
		t.Error("no error for a name without a host and a tag")
	}
}
