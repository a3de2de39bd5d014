"""Networks: build any by name, read their feature points, keep their weights."""
