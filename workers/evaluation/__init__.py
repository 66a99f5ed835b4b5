"""How good an encoder is on rows that it was not trained on, and how sure that is."""
