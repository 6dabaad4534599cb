"""The stream of a stage: which samples form which optimizer step, as arithmetic on lengths and seed."""
