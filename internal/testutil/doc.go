// Package testutil holds what the tests of several packages share: skips that say what the machine lacks and how to get
// it, and waiting for a condition instead of for a time.
package testutil
