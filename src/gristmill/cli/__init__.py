"""The `gristmill` program: one thin module a verb, which parses, calls a room and shows the result."""
