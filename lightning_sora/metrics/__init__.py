"""Metrics: functions and torchmetrics shells."""
