"""Servers, gateways, and the links to them."""
