"""Units for systemd, made for one installation and its configuration."""
