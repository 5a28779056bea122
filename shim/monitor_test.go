package shim

import (
	"bytes"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
)

// Every command ends with its own status, whoever collects it first: the monitor itself, or containerd's reaper, which here
// takes everything as fast as it can.
func TestMonitorAgainstReaper(t *testing.T) {
	m := monitor{newChildren(nil)}
	stop := make(chan struct{})
	var reapers sync.WaitGroup
	reapers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := reaper.Reap(); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	var commands sync.WaitGroup
	for i := range 4 {
		commands.Go(func() {
			for j := range 25 {
				want := (25*i + j) % 100
				cmd := exec.Command("/bin/sh", "-c", "echo out; exit $0")
				if j%2 == 1 {
					cmd = exec.Command("/bin/sh", "-c", "echo out; kill -9 $$")
					want = 137
				}
				cmd.Args = append(cmd.Args, strconv.Itoa(want))
				var out bytes.Buffer
				cmd.Stdout = &out
				start := m.Start
				if j%3 == 0 {
					start = m.StartLocked
				}
				exit, err := start(cmd)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := m.Wait(cmd, exit)
				if err != nil || got != want || out.String() != "out\n" {
					t.Errorf("exit status %d, %v, output %q; want %d and all of the output", got, err, out.String(), want)
				}
			}
		})
	}
	commands.Wait()
	close(stop)
	reapers.Wait()
	if n := len(m.c.commands); n != 0 {
		t.Errorf("%d commands are still taken for running", n)
	}
	if exit, err := m.Start(exec.Command("/nowhere/x")); err == nil {
		t.Errorf("started a program that does not exist: %v", exit)
	}
}
