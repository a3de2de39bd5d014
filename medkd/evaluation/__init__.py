"""Scores per case and class in mm and ml, paired statistics of two arms, and what a network costs."""
