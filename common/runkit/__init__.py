"""Foundation of all stages: errors, configs, atomic files, folders, checkpoints, devices, ranks, training loop."""
