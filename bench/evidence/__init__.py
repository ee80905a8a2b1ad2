"""Measurements that a gate or a tolerance rests on."""
