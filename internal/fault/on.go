//go:build reaperfault

package fault

import (
	"os"
	"strconv"
	"strings"
)

var setting = os.Getenv("REAPER_FAULT")

// InvertSession is set by REAPER_FAULT=invert-session.
var InvertSession = setting == "invert-session"

var forget = func() int {
	n, _ := strconv.Atoi(strings.TrimPrefix(setting, "forget-one-fork-in="))
	return n
}()

// ForgetsFork is true for one child in n with REAPER_FAULT=forget-one-fork-in=n.
func ForgetsFork(pid int) bool { return forget > 0 && pid%forget == 0 }
