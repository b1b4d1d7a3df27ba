"""How each kind of ATen operator treats channel labels."""
