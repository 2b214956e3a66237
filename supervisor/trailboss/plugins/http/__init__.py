"""The web server: connections on one side, workers on the other, middleware between."""
