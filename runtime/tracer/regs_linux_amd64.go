package tracer

const archSupported = true
