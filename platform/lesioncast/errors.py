"""What a user may get wrong before any room is entered."""


class ConfigError(ValueError):
    """A configuration file or override that cannot be used; the message names the key."""
