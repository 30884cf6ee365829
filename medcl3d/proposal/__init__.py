"""From raw scans to a table, configurations and commands: `medcl3d init`."""
