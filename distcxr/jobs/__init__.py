"""Starting runs: the processes of one, a sweep of many, jobs of SLURM."""
