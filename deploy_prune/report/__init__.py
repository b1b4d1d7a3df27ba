"""What a run came to, for people: tables for the terminal and one self-contained HTML page."""
