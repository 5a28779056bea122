package main

import (
	"context"
	"fmt"
)

// probeKinds: pods in the node's network whose web server is asked in each of the ways that the kubelet has, under both runtimes. One
// whose liveness probe finds nobody is restarted, or, where its policy says so, not.
func (c *cluster) probeKinds(ctx context.Context, r *result) error {
	const closed = 18099 // nobody listens there
	always := object{"exec": object{"command": []string{"/bin/true"}}}
	tcp := func(port int) object {
		return object{"tcpSocket": object{"port": port}, "periodSeconds": 1, "failureThreshold": 1}
	}
	var names []string
	for i, k := range classes {
		port := 18080 + i
		spec := func(liveness object, restart string) object {
			s := podSpec(k.class, "")
			s["hostNetwork"], s["restartPolicy"] = true, restart
			main := s["containers"].([]any)[0].(object)
			main["command"] = []string{"/bin/webserver", fmt.Sprint(port)}
			main["startupProbe"], main["livenessProbe"] = always, liveness
			main["readinessProbe"] = object{"httpGet": object{"path": "/", "port": port}, "periodSeconds": 1}
			return s
		}
		served := "probes-" + short(k.class)
		if err := c.createPod(ctx, served, nil, spec(tcp(port), "Always")); err != nil {
			return err
		}
		if _, err := c.waitPod(ctx, served, ""); err != nil {
			return err
		}
		names = append(names, served)
		port += 10
		for _, policy := range []string{"Always", "Never"} {
			name := "dead-" + short(k.class) + "-" + map[string]string{"Always": "restarted", "Never": "ended"}[policy]
			if err := c.createPod(ctx, name, nil, spec(tcp(closed), policy)); err != nil {
				return err
			}
			names = append(names, name)
			if err := c.wait(ctx, "the consequence for pod "+name, startTimeout, func() (bool, string) {
				pods, err := c.podsOf(ctx, name)
				if err != nil || len(pods) != 1 {
					return false, fmt.Sprintf("%d pods, %v", len(pods), err)
				}
				s := pods[0].Status
				if policy == "Never" {
					return s.Phase == "Failed" || s.Phase == "Succeeded", fmt.Sprintf("%+v", s)
				}
				return len(s.ContainerStatuses) == 1 && s.ContainerStatuses[0].RestartCount > 0, fmt.Sprintf("%+v", s)
			}); err != nil {
				return err
			}
			port += 10
		}
		// The first was left alone all that time.
		pods, err := c.podsOf(ctx, served)
		if err != nil {
			return err
		}
		if len(pods) != 1 || !pods[0].ready() || pods[0].Status.ContainerStatuses[0].RestartCount != 0 {
			return fmt.Errorf("pod %s is not as it was: %+v", served, pods)
		}
		fmt.Printf("%s: ready by HTTP, alive by TCP; its neighbour was restarted for a closed port, and the one with restartPolicy Never was not\n", served)
		r.ProbeKinds = append(r.ProbeKinds, k.runtime)
	}
	for _, name := range names {
		if _, err := c.kubectl(ctx, "delete", "pod", name); err != nil {
			return err
		}
	}
	return c.wait(ctx, "the end of the pods", startTimeout, func() (bool, string) {
		left := podCgroups(c.d.CgroupParent)
		return len(left) == 0, fmt.Sprint(left)
	})
}
