package node

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of Find.
var (
	ErrNotFound  = errors.New("no such container")
	ErrAmbiguous = errors.New("more than one container")
)

// minPrefix is how much of an ID has to be given: fewer digits are more likely to be a slip.
const minPrefix = 3

// Find returns the task that ref means: an ID, "namespace/pod/container", "pod/container", a name of nerdctl's, a container or pod name that only one
// has, or the first three or more characters of an ID. What is named first here wins. Errors wrap ErrNotFound or ErrAmbiguous.
func Find(tasks []*Task, ref string) (*Task, error) {
	// containerd's namespaces may hold the same ID, so even that can be ambiguous.
	for _, matches := range []func(*Task) bool{
		func(t *Task) bool { return t.ID == ref },
		func(t *Task) bool { return t.Namespace+"/"+t.ID == ref },
		func(t *Task) bool { return t.Names.String() == ref },
		func(t *Task) bool {
			return t.Names.Pod != "" && !t.Names.Sandbox && t.Names.Pod+"/"+t.Names.Container == ref
		},
		func(t *Task) bool { return t.Names.Container == ref && !t.Names.Sandbox },
		func(t *Task) bool { return t.Names.Pod == ref && !t.Names.Sandbox },
		func(t *Task) bool { return len(ref) >= minPrefix && strings.HasPrefix(t.ID, ref) },
	} {
		var found []*Task
		for _, t := range tasks {
			if ref != "" && matches(t) {
				found = append(found, t)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return nil, fmt.Errorf("%w is meant by %q: %s", ErrAmbiguous, ref, quoteAll(found))
		}
	}
	return nil, fmt.Errorf("%w: %q: want an ID (or its first %d characters or more), namespace/pod/container, pod/container, or a name of nerdctl's",
		ErrNotFound, ref, minPrefix)
}

// quoteAll names a few tasks for a message.
func quoteAll(tasks []*Task) string {
	const most = 5
	var names []string
	for i, t := range tasks {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(tasks)-most))
			break
		}
		names = append(names, fmt.Sprintf("%q", t.Namespace+"/"+t.ID))
	}
	return strings.Join(names, ", ")
}
