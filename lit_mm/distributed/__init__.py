"""Strategies, which distribute a stage over processes (single device, DDP, ZeRO), and the memory of a rank."""
