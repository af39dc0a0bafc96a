"""Test bed of the collapse monitors."""
