"""What runs an engine on a server: containers, or plain processes. Both do the same, and pass the same tests."""
