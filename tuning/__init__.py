"""Hyper-parameter search: which network and training settings suit a cohort best."""
