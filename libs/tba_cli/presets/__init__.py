"""What `tba demo` can teach, each in its own file."""
