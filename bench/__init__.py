"""The benchmark: this pair beside what would be used instead, measured in one run. `make bench` runs it."""
