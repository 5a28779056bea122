package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// late is how long the program does not ask for the status of its children.
const late = 3 * time.Second

func main() {
	leaveOrphans(21, 22, 23, 24)
	codes := []int{11, 12, 13, 14, 15}
	own := make([]*exec.Cmd, len(codes))
	for i, code := range codes {
		own[i] = shell(fmt.Sprintf("exit %d", code))
		if err := own[i].Start(); err != nil {
			fmt.Println("FAIL start:", err)
			os.Exit(1)
		}
	}
	time.Sleep(late)
	for i, code := range codes {
		report("own helper", own[i].Wait(), code)
	}
	leaveOrphans(31, 32, 33, 34)
	fmt.Println("DONE")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	<-stop
}

func shell(script string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

func leaveOrphans(codes ...int) {
	for _, code := range codes {
		report("helper that leaves an orphan", shell(fmt.Sprintf("(sleep 0.3; exit %d) & exit 0", code)).Run(), 0)
	}
}

// report says whether err, as Wait returns it, is that of a process which exited with the code.
func report(what string, err error, code int) {
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		fmt.Printf("FAIL %s: %v, want %d\n", what, err, code)
		return
	}
	verdict := "PASS"
	if got != code {
		verdict = "FAIL"
	}
	fmt.Printf("%s %s: %d, want %d\n", verdict, what, got, code)
}
