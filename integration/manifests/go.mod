// The tests of contrib/ need the API types of Kubernetes, Helm's engine and kustomize: a module of its own, so that the
// shim's has none of them.
module github.com/reaper-shim/reaper/integration/manifests

go 1.26
