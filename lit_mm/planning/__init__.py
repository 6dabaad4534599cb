"""The cost of a stage, computed on the meta device before anything is loaded: operations, bytes, time and money."""
