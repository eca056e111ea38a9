"""What master, agent and gateway say to each other: messages, signatures, manifests. No Django, no I/O."""
