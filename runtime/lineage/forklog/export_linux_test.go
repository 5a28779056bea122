package forklog

// HoldReader keeps the log from draining its rings until the returned function is called.
func HoldReader(p *Perf) (release func()) {
	p.mu.Lock()
	return p.mu.Unlock
}

// BootTicks is the clock of start times.
var BootTicks = bootTicks

// HoldConnector is HoldReader for the connector.
func HoldConnector(c *Connector) (release func()) {
	c.mu.Lock()
	return c.mu.Unlock
}
