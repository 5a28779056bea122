// Package packages tests what "make deb rpm release" makes. All code is in tests, with the build tag packages: they build
// everything, twice without -short.
package packages
