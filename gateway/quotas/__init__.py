"""Quotas: what keys, projects and their models may use, counted exactly by one process or by all of them."""
