"""The reward room: scorers, each a process of its own, joined by the routing slip."""
