"""From scores to channel counts that meet a budget: choose, price, measure, correct."""
