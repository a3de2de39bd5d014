"""From one YAML file to a finished run: configuration, graph of nodes, executors."""
