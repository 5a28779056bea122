package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reaper-shim/reaper/internal/install"
	"github.com/reaper-shim/reaper/internal/kube"
)

const (
	// nodeLabel is "true" on a node whose containerd has the handler, and "false" while it is being taken away.
	nodeLabel = "io.containerd.reaper/ready"
	// The container and its environment variable in the DaemonSet of contrib/.
	containerName, actionEnv = "reaper-install", "ACTION"

	// retryEvery is for what somebody else has to bring about: pods that end, nodes that follow.
	retryEvery = 10 * time.Second
)

// installer is what runOnNode needs of install.Installer.
type installer interface {
	Install(context.Context) error
	Uninstall(context.Context) error
}

// runOnNode installs or uninstalls and keeps the node's label true to it. It returns when it is told to end, since a
// DaemonSet's pod that exits is started again.
func runOnNode(ctx context.Context, in installer, api *kube.Client, node, action string, every time.Duration) error {
	label := func(value string) error { return api.LabelNode(ctx, node, nodeLabel, &value) }
	if action == "install" {
		if err := in.Install(ctx); err != nil {
			return err
		}
		if err := label("true"); err != nil {
			return err
		}
		fmt.Printf("node %s has the label %s=true\n", node, nodeLabel)
	} else {
		// First, so that no new pods come.
		if err := label("false"); err != nil {
			return err
		}
		if err := uninstallWhenUnused(ctx, in, every); err != nil {
			return err
		}
		if err := api.LabelNode(ctx, node, nodeLabel, nil); err != nil {
			return err
		}
		fmt.Printf("node %s is without the label %s\n", node, nodeLabel)
	}
	<-ctx.Done()
	return nil
}

func uninstallWhenUnused(ctx context.Context, in installer, every time.Duration) error {
	said := ""
	for {
		err := in.Uninstall(ctx)
		if !errors.Is(err, install.ErrInUse) {
			return err
		}
		if said != err.Error() {
			said = err.Error()
			fmt.Println(said)
		}
		if err := pause(ctx, every); err != nil {
			return err
		}
	}
}

// retire has a DaemonSet uninstall, and returns when no node has the label any more.
func retire(ctx context.Context, api *kube.Client, daemonSet string, every time.Duration) error {
	namespace, name, ok := strings.Cut(daemonSet, "/")
	if !ok || namespace == "" || name == "" {
		return fmt.Errorf("-daemonset %q: want namespace/name: %w", daemonSet, errUsage)
	}
	if err := api.SetDaemonSetEnv(ctx, namespace, name, containerName, actionEnv, "uninstall"); err != nil {
		return err
	}
	var last []string
	for {
		nodes, err := api.NodesWith(ctx, nodeLabel)
		if err != nil {
			return err
		}
		if len(nodes) == 0 {
			fmt.Println("no node has the handler any more")
			return nil
		}
		if !slices.Equal(nodes, last) {
			last = nodes
			fmt.Println("waiting for nodes, on which pods of the runtime may be running:", strings.Join(nodes, " "))
		}
		if err := pause(ctx, every); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, every time.Duration) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("ended while waiting: %w", context.Cause(ctx))
	case <-time.After(every):
		return nil
	}
}
