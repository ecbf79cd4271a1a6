"""Exact ranking metrics, the gather of every rank's logits, and the report made of them."""
