"""The buffer room: the REST API that takes tasks, and the one writer of trajectories."""
