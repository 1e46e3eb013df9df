"""Many runs: compose, plan, schedule, track, and the command line."""
