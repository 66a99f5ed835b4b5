"""Datasets: from the bytes that people upload to rows, findings and arrays. Torch is never imported here."""
