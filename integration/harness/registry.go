package harness

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is an http.Handler that serves images as the pull half of the OCI distribution specification wants it. It ignores
// the host of a name, so that one registry stands for all that images come from.
type Registry struct {
	manifests map[string]ocispec.Descriptor // by repository + ":" + tag
	blobs     map[digest.Digest]content
}

type content struct {
	mediaType string
	data      []byte
}

// NewRegistry returns a registry with the images.
func NewRegistry(images ...Image) (*Registry, error) {
	r := &Registry{manifests: map[string]ocispec.Descriptor{}, blobs: map[digest.Digest]content{}}
	for _, img := range images {
		blobs, manifest, err := img.blobs()
		if err != nil {
			return nil, fmt.Errorf("make image %v: %w", img.Names, err)
		}
		for dgst, data := range blobs {
			r.blobs[dgst] = content{mediaType: mediaType(data), data: data}
		}
		for _, name := range img.Names {
			_, repository, tag, err := splitReference(name)
			if err != nil {
				return nil, err
			}
			r.manifests[repository+":"+tag] = manifest
		}
	}
	return r, nil
}

// mediaType tells a manifest or an index, which a client may ask for by digest and knows by the type in the answer, from blobs.
func mediaType(data []byte) string {
	var typed struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(data, &typed) == nil && typed.MediaType != "" {
		return typed.MediaType
	}
	return "application/octet-stream"
}

// ServeHTTP answers GET and HEAD of /v2/, /v2/<repository>/manifests/<tag or digest> and /v2/<repository>/blobs/<digest>.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		http.Error(w, "pull only", http.StatusMethodNotAllowed)
		return
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, req)
		return
	}
	if path == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	repository, ref, manifest := strings.Cut(path, "/manifests/")
	if !manifest {
		_, ref, ok = strings.Cut(path, "/blobs/")
		if !ok {
			http.NotFound(w, req)
			return
		}
	}
	dgst := digest.Digest(ref)
	if desc, ok := r.manifests[repository+":"+ref]; manifest && ok {
		dgst = desc.Digest
	}
	blob, ok := r.blobs[dgst]
	if !ok {
		// The body is what the specification gives as an error.
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": "NAME_UNKNOWN", "message": path}}})
		return
	}
	w.Header().Set("Content-Type", blob.mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(blob.data)))
	w.Header().Set("Docker-Content-Digest", dgst.String())
	if req.Method == http.MethodGet {
		_, _ = w.Write(blob.data)
	}
}
