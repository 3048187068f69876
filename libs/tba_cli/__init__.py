"""The `tba` command: a client of the REST API, and the whole platform on one machine."""
