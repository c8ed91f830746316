"""Commands around training; nothing imports them."""
