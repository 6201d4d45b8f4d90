"""Run a configuration: command line, inputs and checks, stages, records, folders, resumption."""
