"""Paths, timesteps, samplers and guidance: functions of tensors, no modules."""
