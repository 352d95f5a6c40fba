"""The disks of this node: what they are, who uses them, and how they are made ready for a storage."""
