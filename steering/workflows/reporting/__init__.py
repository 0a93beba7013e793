"""Judges steering at a fixed operating point before it is deployed: control, utility, robustness, side effects."""
