package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/integration/compare"
	"github.com/reaper-shim/reaper/integration/harness"
)

const (
	// leakyProbe succeeds, and leaves an orphan to PID 1 each time.
	leakyProbe = "sleep 0.1 & true"

	sampleEvery = 10 * time.Second
	sampleFor   = 2 * time.Minute

	orphans = 5
	// settle is longer than what the default grace period and a sweep take, on a busy machine too.
	settle = 10 * time.Second
)

var classes = []struct{ class, runtime string }{{"", harness.RuncRuntime}, {handler, harness.ReaperRuntime}}

// execAndAnnotations: the RuntimeClass leads to our runtime; orphans of kubectl exec stay under runc.v2 and go under ours; the pod's
// annotation is the shim's, and a bad one is told to whoever asks Kubernetes.
func (c *cluster) execAndAnnotations(ctx context.Context, r *result) error {
	if err := c.call(ctx, http.MethodPost, "/apis/node.k8s.io/v1/runtimeclasses", object{
		"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": object{"name": handler}, "handler": handler,
	}, nil); err != nil {
		return err
	}
	cases := []struct {
		name, class, runtime, mode string
		want                       int // zombies that stay
		pod                        livePod
	}{
		{name: "exec-runc", runtime: harness.RuncRuntime, want: orphans},
		{name: "exec-observe", class: handler, runtime: harness.ReaperRuntime, mode: "observe", want: orphans},
		{name: "exec-reaper", class: handler, runtime: harness.ReaperRuntime},
	}
	for _, k := range cases {
		var annotations map[string]string
		if k.mode != "" {
			annotations = map[string]string{modeAnnotation: k.mode}
		}
		if err := c.createPod(ctx, k.name, annotations, podSpec(k.class, "")); err != nil {
			return err
		}
	}
	if err := c.createPod(ctx, "bad-mode", map[string]string{modeAnnotation: "sometimes"}, podSpec(handler, "")); err != nil {
		return err
	}
	for i, k := range cases {
		p, err := c.waitPod(ctx, k.name, "")
		if err != nil {
			return err
		}
		if p.runtime != k.runtime {
			return fmt.Errorf("pod %s runs under %s, want %s", k.name, p.runtime, k.runtime)
		}
		if got := p.annotations[modeAnnotation]; got != k.mode {
			return fmt.Errorf("pod %s: annotation %s is %q in the container's OCI spec, want %q", k.name, modeAnnotation, got, k.mode)
		}
		cases[i].pod = p
		out, err := c.kubectl(ctx, "exec", k.name, "--", "/bin/leak", "-v", "-n", fmt.Sprint(orphans))
		if err != nil {
			return err
		}
		if n := strings.Count(out, "orphan "); n != orphans {
			return fmt.Errorf("kubectl exec in pod %s: %d orphans in %q, want %d", k.name, n, compare.OneLine(out), orphans)
		}
	}
	for _, k := range slices.Backward(cases) {
		var n int
		// ours first: by then the others have had the same time
		err := c.wait(ctx, fmt.Sprintf("%d zombies in pod %s", k.want, k.name), settle, func() (bool, string) {
			zombies, err := harness.Zombies(k.pod.init.PID)
			n = len(zombies)
			return err == nil && n == k.want, fmt.Sprintf("%d zombies, %v", n, err)
		})
		if err != nil {
			return err
		}
		fmt.Printf("%s: %d of %d orphans of kubectl exec are left\n", k.name, n, orphans)
		r.Exec = append(r.Exec, execResult{Runtime: k.runtime, Mode: k.mode, Left: n})
	}
	slices.Reverse(r.Exec)
	if err := c.wait(ctx, "the complaint about a bad mode", startTimeout, func() (bool, string) {
		events, err := c.events(ctx, "bad-mode")
		if err != nil {
			return false, err.Error()
		}
		for _, e := range events {
			if _, why, ok := strings.Cut(e.Message, modeAnnotation); ok && strings.Contains(why, "sometimes") {
				r.BadMode = modeAnnotation + why
				return true, ""
			}
		}
		return false, fmt.Sprintf("events %v", events)
	}); err != nil {
		return err
	}
	fmt.Printf("bad-mode: %s\n", compare.OneLine(r.BadMode))

	for _, name := range []string{"exec-runc", "exec-observe", "exec-reaper", "bad-mode"} {
		if _, err := c.kubectl(ctx, "delete", "pod", name); err != nil {
			return err
		}
	}
	for _, k := range cases {
		if err := c.waitGone(ctx, k.pod); err != nil {
			return err
		}
		fmt.Printf("%s: deleted, nothing is left\n", k.name)
	}
	return nil
}

// deployBoth makes a Deployment per runtime and waits until both are ready. Their names begin with prefix.
func (c *cluster) deployBoth(ctx context.Context, prefix string) (pods [2]livePod, err error) {
	for _, k := range classes {
		if err := c.createDeployment(ctx, prefix+short(k.class), podSpec(k.class, leakyProbe)); err != nil {
			return pods, err
		}
	}
	for i, k := range classes {
		if pods[i], err = c.waitPod(ctx, prefix+short(k.class), ""); err != nil {
			return pods, err
		}
		if pods[i].runtime != k.runtime {
			return pods, fmt.Errorf("pod %s runs under %s, want %s", pods[i].Metadata.Name, pods[i].runtime, k.runtime)
		}
	}
	return pods, nil
}

func short(class string) string {
	if class == "" {
		return "runc"
	}
	return class
}

func (c *cluster) sample(ctx context.Context, pods [2]livePod, began time.Time) (sample, error) {
	s := sample{After: time.Since(began)}
	var err error
	if s.Runc, err = c.read(ctx, pods[0]); err != nil {
		return s, err
	}
	s.Reaper, err = c.read(ctx, pods[1])
	fmt.Println(s)
	return s, err
}

// tick waits for the next sample.
func (c *cluster) tick(ctx context.Context, ticker *time.Ticker) error {
	select {
	case <-ticker.C:
		return nil
	case err := <-c.died:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leakyProbes samples the same Deployment under both runtimes.
func (c *cluster) leakyProbes(ctx context.Context, r *result) error {
	pods, err := c.deployBoth(ctx, "leaky-")
	if err != nil {
		return err
	}
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	began := time.Now()
	for {
		s, err := c.sample(ctx, pods, began)
		if err != nil {
			return err
		}
		r.Probes = append(r.Probes, s)
		if s.After >= sampleFor {
			return checkProbes(r.Probes)
		}
		if err := c.tick(ctx, ticker); err != nil {
			return err
		}
	}
}

// evictAndDelete: the pods of the Deployments are evicted and replaced, and the Deployments deleted; nothing is left of any.
func (c *cluster) evictAndDelete(ctx context.Context, r *result) error {
	for _, k := range classes {
		app := "leaky-" + short(k.class)
		old, err := c.waitPod(ctx, app, "")
		if err != nil {
			return err
		}
		name := old.Metadata.Name
		if err := c.call(ctx, http.MethodPost, podsPath+"/"+name+"/eviction", object{
			"apiVersion": "policy/v1", "kind": "Eviction", "metadata": object{"name": name, "namespace": "default"},
		}, nil); err != nil {
			return err
		}
		if err := c.waitGone(ctx, old); err != nil {
			return err
		}
		next, err := c.waitPod(ctx, app, old.Metadata.UID)
		if err != nil {
			return err
		}
		if next.runtime != k.runtime {
			return fmt.Errorf("pod %s, in place of an evicted one, runs under %s, want %s", next.Metadata.Name, next.runtime, k.runtime)
		}
		fmt.Printf("%s: evicted and replaced, nothing is left of it\n", name)
		if err := c.deleteDeployment(ctx, app, next); err != nil {
			return err
		}
		fmt.Printf("%s: deleted, nothing is left\n", app)
	}
	r.Evicted = true
	return nil
}

func (c *cluster) deleteDeployment(ctx context.Context, app string, p livePod) error {
	if _, err := c.kubectl(ctx, "delete", "deployment", app); err != nil {
		return err
	}
	return c.waitGone(ctx, p)
}

// limited: with podPidsLimit the pod under runc.v2 loses readiness, since nothing can fork in it, and ours keeps it.
func (c *cluster) limited(ctx context.Context, r *result) error {
	if err := c.stopKubelet(); err != nil {
		return err
	}
	if err := c.startKubelet(ctx, pidsLimit); err != nil {
		return err
	}
	pods, err := c.deployBoth(ctx, "limited-")
	if err != nil {
		return err
	}
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	began := time.Now()
	lost := -1
	// Two more samples than it takes the one pod: ours has to keep what that has lost.
	for lost < 0 || len(r.Limited) < lost+3 {
		s, err := c.sample(ctx, pods, began)
		if err != nil {
			return err
		}
		r.Limited = append(r.Limited, s)
		if lost < 0 && !s.Runc.Ready {
			lost = len(r.Limited) - 1
		}
		if lost < 0 && s.After > 2*sampleFor {
			return fmt.Errorf("the pod under runc.v2 is ready after %v, with %d zombies", s.After.Round(time.Second), s.Runc.Zombies)
		}
		if err := c.tick(ctx, ticker); err != nil {
			return err
		}
	}
	if err := checkLimited(r.Limited); err != nil {
		return err
	}
	messages := make([][]string, len(pods))
	for i, p := range pods {
		events, err := c.events(ctx, p.Metadata.Name)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Reason == "Unhealthy" {
				messages[i] = append(messages[i], compare.OneLine(e.Message))
			}
		}
	}
	if i := slices.IndexFunc(messages[0], func(m string) bool { return strings.Contains(m, "can't fork") }); i >= 0 {
		r.CannotFork = messages[0][i]
	} else {
		return fmt.Errorf("events of the pod under runc.v2: %q, want one that says that it can't fork", messages[0])
	}
	fmt.Printf("runc.v2: %s\n", r.CannotFork)
	if len(messages[1]) > 0 {
		return fmt.Errorf("events of the pod under ours: %q, want no failed probe", messages[1])
	}
	var errs []error
	for i, k := range classes {
		errs = append(errs, c.deleteDeployment(ctx, "limited-"+short(k.class), pods[i]))
	}
	return errors.Join(errs...)
}
