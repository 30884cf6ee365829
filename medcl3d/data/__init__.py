"""From files as they lie on a disk to crops in memory."""
