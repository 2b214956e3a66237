"""The server plugin: how workers are started, and `server.on_init`."""
