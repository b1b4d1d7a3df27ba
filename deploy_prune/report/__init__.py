"""A run's results, for people: tables for the terminal and one self-contained HTML page."""
