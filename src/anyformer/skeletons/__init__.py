"""Skeletons: how streams connect. One file each."""
