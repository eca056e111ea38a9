"""One agent a server: turns the master's desired state into running engines, and says what it sees. No Django."""
