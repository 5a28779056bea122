// Command realprograms is PID 1 of a container for TestRealPrograms. The scripts beside it do the same, each as is usual in its
// language:
//
//   - at once at start-up it runs four helpers that each leave an orphan behind in PID 1's own session, which ends 0.3 s later
//     with a code of its own (21 to 24);
//   - it starts five helpers that end at once (codes 11 to 15), and asks for their status only 3 s later, when the grace period
//     of the orphans is over;
//   - it runs four more helpers that leave orphans (31 to 34);
//   - it prints DONE and idles.
//
// Of each status that it asks for it prints a line that begins with PASS or FAIL.
package main
