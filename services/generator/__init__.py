"""The generator room: samples completions with the newest weights it has verified."""
