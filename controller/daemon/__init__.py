"""The daemon: wires the parts, runs the loop, and is what operators talk to."""
