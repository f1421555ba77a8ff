"""The operator's side of the service: the command line `curriculum`."""
