"""Answers in four stages: their tags, their parts, and the comparison of their conclusions."""
