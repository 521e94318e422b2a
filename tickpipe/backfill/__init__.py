"""Fills gaps with the vendor's one-minute bars."""
