"""Measurements that justify gates and tolerances."""
