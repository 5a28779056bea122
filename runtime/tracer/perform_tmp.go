package tracer

func perform(req Request) Report {
	return decline(req, ReasonUnsupportedArch, "not implemented yet")
}
