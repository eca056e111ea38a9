"""Dashboard, live pages, samples and the exporter."""
