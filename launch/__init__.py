"""Where it runs: local processes, clusters, pods."""
