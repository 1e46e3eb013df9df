"""One file a verb: `run(compose, overrides) -> exit code`."""
