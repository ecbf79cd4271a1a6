"""Many runs of one machine: sweeps."""
