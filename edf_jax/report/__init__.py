"""What runs and comparisons show: pages, tables and figures."""
