"""What is written into a container's own files: names, addresses, terminals, root's password and keys."""
