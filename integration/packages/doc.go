// Package packages tests what "make deb rpm release" makes. All code is in tests, with the build tag packages: building
// everything twice takes too long for the other integration tests.
package packages
