"""Strategies: how a stage is spread over processes (single device, DDP, ZeRO), and what a rank then holds."""
