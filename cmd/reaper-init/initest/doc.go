// Package initest holds the tests of reaper-init: they run the binary as a real process, as PID 1 of a PID namespace or below
// another, with programs that do what tini's and dumb-init's own tests do. "make init-cases" lists them in docs/init-cases.md.
package initest
