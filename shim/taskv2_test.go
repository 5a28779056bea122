package shim

import (
	"testing"

	v2 "github.com/containerd/containerd/api/runtime/task/v2"
	v3 "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// TestTaskV2Messages: what version 2 of the task API sends is read as version 3, so that every message must have the same
// fields with the same numbers and kinds.
func TestTaskV2Messages(t *testing.T) {
	old, now := v2.File_runtime_task_v2_shim_proto, v3.File_runtime_task_v3_shim_proto
	methods := func(f protoreflect.FileDescriptor) map[string][2]protoreflect.Name {
		out := map[string][2]protoreflect.Name{}
		all := f.Services().Get(0).Methods()
		for i := range all.Len() {
			m := all.Get(i)
			out[string(m.Name())] = [2]protoreflect.Name{m.Input().Name(), m.Output().Name()}
		}
		return out
	}
	olds, nows := methods(old), methods(now)
	if len(olds) < 17 {
		t.Fatalf("version 2 has %d methods, want at least 17", len(olds))
	}
	for name, types := range olds {
		if nows[name] != types {
			t.Errorf("%s takes and returns %v in version 2, %v in version 3", name, types, nows[name])
		}
	}
	for i := range old.Messages().Len() {
		a := old.Messages().Get(i)
		b := now.Messages().ByName(a.Name())
		if b == nil {
			t.Errorf("version 3 has no message %s", a.Name())
			continue
		}
		for j := range a.Fields().Len() {
			x := a.Fields().Get(j)
			y := b.Fields().ByNumber(x.Number())
			if y == nil || x.Name() != y.Name() || x.Kind() != y.Kind() || x.Cardinality() != y.Cardinality() {
				t.Errorf("%s: field %d is %v in version 2, %v in version 3", a.Name(), x.Number(), x, y)
			}
		}
	}
}
