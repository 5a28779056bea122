// Package benchreport is what the benchmark programs share: where they ran, statistics, raw data in a JSON file, and tables between two
// marks of a page.
package benchreport
