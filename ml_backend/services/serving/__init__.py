"""Connected projects while people label them."""
